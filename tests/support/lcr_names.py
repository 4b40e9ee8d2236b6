"""Documents of AA-LCR whose file names say what they are: names in the order of the hub's ``data_source_filenames``, each with words
that the document so named begins with. The names are the data set's (ArtificialAnalysis/AA-LCR, Apache-2.0); they were read from a stored
copy of the hub's table, not from the package whose order they test.
"""

from __future__ import annotations

_DR = "Digital Realty Reports {} Quarter {} Results".format
_EQ = "EQUINIX REPORTS {}".format
_CALL = "({}) {} Earnings Call".format

NAMED: dict[str, list[tuple[str, str]]] = {
    "ac_markets": [
        ("barriers-to-collaboration-and-commercialisation-iisa.txt", "Barriers to collaboration and commercialisation"),
        ("The-State-of-Competition.txt", "The State of competition In Australia"),
        ("FULLTEXT01.txt", "Contents lists available at ScienceDirect"),
        ("DAF-COMP(2023)14.en.txt", "DAF/COMP(2023)14"),
    ],
    "co_dc_press_a": [
        ("Copy of Equinix Q2 2024 Press Release and Financials.txt", _EQ("SECOND QUARTER 2024")),
        ("Copy of Digital-Realty-4Q23-Earnings-Press-Release-FINAL-2-15-24.txt", _DR("Fourth", 2023)),
        ("Copy of Digital-Realty-2Q24-Earnings-Press-Release-07-25-2024-FINAL.txt", _DR("Second", 2024)),
        ("Copy of Equinix Q1 2024 Press Release and Financials.txt", _EQ("FIRST QUARTER 2024")),
        ("Copy of Equinix Q4 2023 Press Release and Financials.txt", _EQ("FOURTH-QUARTER AND FULL-YEAR 2023")),
        ("Copy of Digital-Realty-1Q24-Earnings-Press-Release-FINAL-5-2-24.txt", _DR("First", 2024)),
    ],
    "co_dc_press_b": [
        ("Copy of Digital-Realty-s-1Q23-Earnings-Press-Release.txt", _DR("First", 2023)),
        ("Copy of Equinix Q3 2023 Press Release and Financials.txt", _EQ("THIRD-QUARTER 2023")),
        ("Copy of Equinix Q1 2023 Press Release and Financials.txt", _EQ("FIRST-QUARTER 2023")),
        ("Copy of Digital-Realty-2Q23-Earnings-Press-Release-FINAL.txt", _DR("Second", 2023)),
        ("Copy of Digital-Realty-3Q23-Earnings-Press-Release.txt", _DR("Third", 2023)),
        ("Copy of Equinix Q2 2023 Press Release and Financials.txt", _EQ("SECOND-QUARTER 2023")),
    ],
    "co_dc_dr_press": [
        ("Digital-Realty-1Q24-Earnings-Press-Release-FINAL-5-2-24.txt", _DR("First", 2024)),
        ("Digital-Realty-3Q23-Earnings-Press-Release.txt", _DR("Third", 2023)),
        ("Digital-Realty-2Q24-Earnings-Press-Release-07-25-2024-FINAL.txt", _DR("Second", 2024)),
        ("Digital-Realty-4Q23-Earnings-Press-Release-FINAL-2-15-24.txt", _DR("Fourth", 2023)),
        ("Digital-Realty-2Q23-Earnings-Press-Release-FINAL.txt", _DR("Second", 2023)),
        ("Digital-Realty-s-1Q23-Earnings-Press-Release.txt", _DR("First", 2023)),
    ],
    "co_dc_nxt_history": [
        ("2597207- NXT - FY23 Results Announcement.txt", "FY23 Record Results"),
        ("FY22 Half Year Results Announcement.txt", "1H22 Record Results"),
        ("2597206- NXT - FY23 Annual Report.txt", "FY23 Annual Report"),
        ("2687355-- NXT - Half Year Results Announcement.txt", "1H24 Record Results"),
        ("1H23 Results Announcement.txt", "1H23 Record Results"),
        ("FY22 Results Announcement.txt", "FY22 Record Results"),
    ],
    "co_pro_rel_ann": [
        ("TEAM-Q4-2024-Earnings-Release.txt", "Atlassian Announces Fourth Quarter and Fiscal Year 2024"),
        ("Smartsheet-Inc.-Announces-Third-Quarter-Fiscal-Year-2024-Results-2023.txt", "Smartsheet Inc. Announces Third Quarter"),
        ("Smartsheet-Inc.-Announces-First-Quarter-Fiscal-Year-2024-Results-2023.txt", "Smartsheet Inc. Announces First Quarter"),
        ("Asana Announces First Quarter Fiscal 2024 Results.txt", "Asana Announces First Quarter Fiscal 2024 Results"),
        ("Asana Announces Fourth Quarter and Fiscal Year 2023 Revenues.txt", "Asana Announces Fourth Quarter and Fiscal Year 2023"),
        ("Asana Announces Second Quarter Fiscal 2024 Results.txt", "Asana Announces Second Quarter Fiscal 2024 Results"),
        ("Asana Announces Third Quarter Fiscal 2024 Results.txt", "Asana Announces Third Quarter Fiscal 2024 Results"),
        ("TEAM-Q1-2024-Earnings-Release.txt", "Atlassian Announces First Quarter Fiscal Year 2024"),
        ("Smartsheet-Inc.-Announces-Second-Quarter-Fiscal-Year-2024-Results-2023.txt", "Smartsheet Inc. Announces Second Quarter"),
        ("TEAM-Q3-2024-Earnings-Release.txt", "Atlassian Announces Third Quarter Fiscal Year 2024"),
        ("TEAM-Q2-2024-Earnings-Release.txt", "Atlassian Announces Second Quarter Fiscal Year 2024"),
        ("Smartsheet-Inc.-Announces-Fourth-Quarter-and-Fiscal-Year-2024-Results-2024.txt", "Smartsheet Inc. Announces Fourth Quarter"),
    ],
    "co_pro_transcripts_2023": [
        ("CORRECTED-TRANSCRIPT_-Atlassian-Corp-TEAM-US-Q3-2023-Earnings-Call-4-May-2023-5_00-PM-ET.txt", "Q3 2023 Earnings Call"),
        ("Smartsheet-Transcript-3Q23.txt", "Thursday, December 1, 2022"),
        ("CORRECTED-TRANSCRIPT_-Atlassian-Corp-TEAM-US-Q4-2023-Earnings-Call-3-August-2023-5_00-PM-ET.txt", "Q4 2023 Earnings Call"),
        ("34978780_1824791928_2764985_Transcript_EditedCopy_20230315012544.txt", "Tuesday, March 14, 2023"),
        ("ASAN_Transcript_FY23Q4_Final.txt", _CALL("ASAN", "Q4 2023")),
        ("ASAN_Transcript_FY23Q3_post.txt", _CALL("ASAN", "Q3 2023")),
    ],
    "co_pro_asana_rel_tran": [
        ("ASAN_Transcript_FY24Q1.txt", _CALL("ASAN", "Q1 2024")),
        ("Asana Announces Fourth Quarter and Fiscal Year 2024 Results.txt", "Asana Announces Fourth Quarter and Fiscal Year 2024"),
        ("Asana Announces First Quarter Fiscal 2024 Results.txt", "Asana Announces First Quarter Fiscal 2024 Results"),
        ("ASAN_Transcript_FY23Q4_Final.txt", _CALL("ASAN", "Q4 2023")),
        ("ASAN_Transcript_FY24Q3.txt", _CALL("ASAN", "Q3 2024")),
        ("ASAN_Transcript_FY24Q4.txt", _CALL("ASAN", "Q4 2024")),
        ("ASAN_Transcript_FY24Q2.txt", _CALL("ASAN", "Q2 2024")),
        ("Asana Announces Fourth Quarter and Fiscal Year 2023 Revenues.txt", "Asana Announces Fourth Quarter and Fiscal Year 2023"),
        ("Asana Announces Second Quarter Fiscal 2024 Results.txt", "Asana Announces Second Quarter Fiscal 2024 Results"),
        ("Asana Announces Third Quarter Fiscal 2024 Results.txt", "Asana Announces Third Quarter Fiscal 2024 Results"),
    ],
    "legal_eu_ai": [
        ("KZenner - AIA - Responsibilities of the Commission.txt", "responsibilities of the Commission"),
        ("The-AI-Act.txt", "COM(2021) 206 final"),
        ("AI Watch_ Global regulatory tracker - European Union _ White & Case LLP.txt", "AI Watch: Global regulatory tracker"),
        ("verfassungsblog.de-Examining the EUs Artificial Intelligence Act.txt", "verfassungsblog.de/examining-the-eus"),
        (
            "Long awaited EU AI Act becomes law after publication in the EU\u2019s Official Journal _ White & Case LLP.txt",
            "Long awaited EU AI Act becomes law",
        ),
        ("A deep dive into the EU AI Act _ Perspectives _ Reed Smith LLP.txt", "A deep dive into the EU AI Act"),
        ("What the EU AI Act means for you\u2014and how to prepare.txt", "What the EU AI Act means for you"),
        ("KZenner - AIA - Responsibilities of the MS.txt", "responsibilities of the Member States"),
    ],
    "legal_sb1047": [
        ("202320240SB1047_Senate Floor Analyses.txt", "Office of Senate Floor Analyses"),
        ("202320240SB1047_Senate Floor Analyses (1).txt", "Office of Senate Floor Analyses"),
        ("202320240SB1047_Assembly Appropriations.txt", "ASSEMBLY COMMITTEE ON APPROPRIATIONS"),
        ("202320240SB1047_Senate Governmental Organization.txt", "SENATE COMMITTEE ON GOVERNMENTAL ORGANIZATION"),
        ("202320240SB1047_Senate Appropriations (1).txt", "SENATE COMMITTEE ON APPROPRIATIONS"),
        ("202320240SB1047_Senate Appropriations.txt", "SENATE COMMITTEE ON APPROPRIATIONS"),
        ("202320240SB1047_Assembly Floor Analysis.txt", "SENATE THIRD READING"),
        ("202320240SB1047_Senate Judiciary.txt", "SENATE JUDICIARY COMMITTEE"),
        ("20230SB1047_89.txt", "AMENDED IN ASSEMBLY AUGUST 22, 2024"),
        ("202320240SB1047_Assembly Judiciary.txt", "ASSEMBLY COMMITTEE ON JUDICIARY"),
        ("202320240SB1047_Assembly Floor Analysis (1).txt", "SENATE THIRD READING"),
        ("202320240SB1047_Assembly Privacy And Consumer Protection.txt", "ASSEMBLY COMMITTEE ON PRIVACY AND CONSUMER PROTECTION"),
    ],
    "ind_aus_retail": [
        ("australian-retail-outlook-2022.txt", "Outlook2022"),
        ("australian-retail-outlook-2024.txt", "Outlook2024"),
        ("australian-retail-outlook-2023.txt", "Outlook2023"),
    ],
    "mkt_gaming": [
        (
            "No cheat-codes needed \u2013 Videogame Advertising Guide, Petros Nafpliotis, Alex Lowe.txt",
            "No cheat-codes needed \u2013 Videogame Advertising Guide",
        ),
        ("IAB_Creative_Guidelines_Best_Practices_Advertising_Gaming_March_2024.txt", "BEST PRACTICES IN ADVERTISING IN GAMING"),
        ("Guidance-on-advertising-in-game-purchases.txt", "Guidance on advertising in-game purchases"),
        ("402813954_17. 260-275 Sinem Eyice Ba\u015fev.txt", "Eyice Ba\u015fev"),
        ("2024-Young-Adults-Gambling-Online-in-the-ACT-ANU-Research-Report.txt", "Young Adults Gambling Online in the ACT"),
        ("13817.txt", "International Journal for Multidisciplinary Research (IJFMR)"),
    ],
}

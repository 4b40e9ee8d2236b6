"""What each kind of server wants to be asked, and where it puts the answer."""

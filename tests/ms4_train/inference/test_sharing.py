"""Who answers what: balance, room, priorities, prompts that were seen before. Everything against loads counted by hand."""

from __future__ import annotations

import random

from ms4_train.inference import GenerationRequest, SamplingParams
from ms4_train.inference.sharing import Sharing


def request(name, *, tokens=10, prompt=(1, 2), n=1, priority=0):
    return GenerationRequest(name, prompt, SamplingParams(max_tokens=tokens), n=n, priority=priority)


def given(sharing, *requests):
    """Names by rank."""
    for item in requests:
        sharing.add(item)
    return {rank: [item.request_id for item in items] for rank, items in sharing.hand_out().items()}


def test_the_rank_with_the_fewest_unfinished_tokens_comes_first():
    sharing = Sharing(2, 8)
    assert given(sharing, request("a", tokens=50, prompt=(1,)), request("b", prompt=(2,)), request("c", prompt=(3,))) == {
        0: ["a"],
        1: ["b", "c"],
    }
    assert sharing.loads() == [51, 22]
    sharing.advance("a", 0, 45)
    assert sharing.loads() == [6, 22]
    assert given(sharing, request("d", prompt=(4,))) == {0: ["d"]}
    sharing.finish("a", 0)
    assert sharing.loads() == [11, 22]
    assert "a" not in sharing.shares


def test_requests_wait_for_room_and_keep_their_order():
    sharing = Sharing(2, 1)
    assert given(sharing, *[request(str(number), prompt=(number,)) for number in range(1, 9)]) == {0: ["1", "3", "5"], 1: ["2", "4", "6"]}
    assert sharing.waiting == 2
    assert given(sharing, request("first", priority=-1, prompt=(9,))) == {}
    sharing.finish("2", 0)
    assert given(sharing) == {1: ["first"]}
    sharing.finish("1", 0)
    assert given(sharing) == {0: ["7"]}


def test_all_answers_of_a_request_go_to_one_rank_and_more_than_its_room_when_it_is_free():
    sharing = Sharing(2, 2)
    assert given(sharing, request("many", n=9), request("small", prompt=(5,))) == {0: ["many"], 1: ["small"]}
    assert given(sharing, request("more", n=4, prompt=(6,))) == {}, "rank 1 has one, and four more are too many"
    sharing.finish("small", 0)
    assert given(sharing) == {1: ["more"]}
    for index in range(9):
        sharing.finish("many", index)
    assert sharing.loads() == [0, 41]


def test_a_prompt_goes_where_it_was_before_if_that_is_not_much_busier():
    sharing = Sharing(2, 8)
    prompt = tuple(range(40))
    assert given(sharing, request("a", prompt=prompt)) == {0: ["a"]}
    assert given(sharing, request("again", prompt=prompt)) == {0: ["again"]}, "rank 1 is idle, but knows nothing of it"
    assert given(sharing, request("b", prompt=(1,))) == {1: ["b"]}
    assert given(sharing, request("third", prompt=prompt)) == {1: ["third"]}, "by now rank 0 has much more to do"
    sharing.clear()
    assert given(sharing, request("c", prompt=(1,)), request("d", prompt=prompt)) == {0: ["c"], 1: ["d"]}, "the caches are gone"


def test_a_cancelled_request_leaves_the_queue_and_its_name_is_free():
    sharing = Sharing(1, 1)
    given(sharing, *[request(str(number)) for number in range(4)])
    sharing.finish("3", 0)
    assert sharing.waiting == 0
    sharing.add(request("3", tokens=99))
    sharing.finish("0", 0)
    assert given(sharing) == {0: ["3"]}
    assert sharing.loads() == [12 + 12 + 101]


def test_loads_stay_even_under_random_work():
    """Every rank ends with as many tokens as the others, up to the longest request; none is given out twice or lost."""
    rng, sharing, seen = random.Random(4), Sharing(4, 4), []
    for number in range(400):
        sharing.add(request(str(number), tokens=rng.randint(1, 60), prompt=(rng.randrange(50),), n=rng.choice([1, 1, 1, 2])))
    done = [0] * 4
    while sharing.shares:
        seen += [item.request_id for items in sharing.hand_out().values() for item in items]
        placed = [share for share in sharing.shares.values() if share.rank is not None]
        for share in placed:
            for index in list(share.unfinished):
                sharing.advance(share.request.request_id, index, 1)
                assert share.rank is not None
                done[share.rank] += 1
                if not share.unfinished[index]:
                    sharing.finish(share.request.request_id, index)
    assert sorted(seen, key=int) == [str(number) for number in range(400)]
    assert max(done) - min(done) < 0.1 * max(done)

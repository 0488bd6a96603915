"""Which container each point of a sweep gets."""

from __future__ import annotations

from ml_experiments.backends.pools import Pool, Pools


def test_points_share_the_container_that_is_set_up_for_them() -> None:
    pools = Pools(2)
    first, second = pools.take("a"), pools.take("b")
    assert (first.number, second.number) == (0, 1)
    pools.free(second)
    pools.free(first)
    assert pools.take("b") == second
    assert pools.take("a") == first


def test_a_key_that_no_container_has_takes_the_place_of_an_idle_one() -> None:
    pools = Pools(2)
    taken = [pools.take("a"), pools.take("b")]
    pools.free(taken[0])
    assert pools.take("c").number == 0
    pools.free(taken[1])
    assert pools.take("a").number == 1


def test_points_without_a_set_up_share_one_pool() -> None:
    pools = Pools(8)
    assert pools.take(None) == pools.take(None) == Pool(None, 8)
    pools.free(Pool(None, 8))
    pools.free(None)
    assert pools.end_idle() == []


def test_idle_containers_end_once_and_may_start_again() -> None:
    pools = Pools(2)
    first, second = pools.take("a"), pools.take("a")
    pools.free(second)
    assert pools.end_idle() == [second]
    assert pools.end_idle() == []
    assert pools.take("a") == second
    pools.free(first)
    assert pools.end_idle() == [first]


def test_points_whose_containers_differ_get_one_each() -> None:
    pools = Pools(2, one_each=True)
    first, second = pools.take(None), pools.take(None)
    assert (first.number, second.number) == (0, 1)
    pools.free(second)
    assert pools.take(None) == second

from mcpmeter.simulator.rng import RequestRng


def drawn(rng, body):
    random, repetition = rng.of(body)
    return random.random(), repetition


def test_numbers_depend_on_seed_body_and_repetition_only():
    one, two = RequestRng(1), RequestRng(1)
    first = {(body, n): drawn(one, body) for n in range(3) for body in (b"a", b"b")}
    second = {(body, n): drawn(two, body) for body in (b"b", b"a") for n in range(3)}
    assert first == second
    assert len({value for value, _ in first.values()}) == 6
    assert drawn(RequestRng(2), b"a") != first[b"a", 0]


def test_a_salt_separates_equal_bodies():
    rng = RequestRng(1)
    (one, first), (two, second) = rng.of(b"a"), rng.of(b"a", b"salt")
    assert (first, second) == (0, 0)
    assert one.random() != two.random()


def test_the_oldest_bodies_are_evicted():
    rng = RequestRng(1, bodies_kept=2)
    for body in (b"a", b"b", b"c"):
        rng.of(body)
    assert rng.of(b"c")[1] == 1
    assert rng.of(b"a")[1] == 0

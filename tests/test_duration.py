from vpeft.duration import duration


def test_a_duration_is_told_in_its_two_largest_units():
    told = {
        0.04: "0.0 s",
        42.26: "42.3 s",
        59.7: "1 min 00 s",
        185: "3 min 05 s",
        3599.6: "1 h 00 min",
        7805: "2 h 10 min",
    }
    assert {seconds: duration(seconds) for seconds in told} == told

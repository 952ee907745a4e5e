"""The page of methods says what their files say."""

from edkd.bench import methods


def test_the_page_is_up_to_date() -> None:
    assert methods.PAGE.read_text() == methods.page(), "run `python -m edkd.bench.methods`"

import logging

import pytest
from kubernetes.client.exceptions import ApiException

from airflow_provider_sft.api_patience import ApiAwayError, Patience, is_passing

OUTAGE = ApiException(status=500, reason="Internal Server Error")


def test_patience_outlasts_an_outage_of_minutes_at_a_bearable_pace():
    patience = Patience(logging.getLogger())
    pauses = [patience.take_failure(OUTAGE) for _ in range(20)]
    assert sum(pauses[:8]) > 60
    assert max(pauses) == 30
    assert pauses == sorted(pauses)


def test_patience_begins_anew_after_a_success():
    patience = Patience(logging.getLogger())
    first = [patience.take_failure(OUTAGE) for _ in range(5)]
    patience.take_success()
    assert [patience.take_failure(OUTAGE) for _ in range(5)] == first


def test_patience_that_ends_says_how_long_it_was_and_why():
    with pytest.raises(ApiAwayError, match="The Kubernetes API failed for 0 s: 500: Internal Server Error"):
        Patience(logging.getLogger(), limit_s=0).take_failure(OUTAGE)


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
def test_answer_that_another_try_does_not_change_is_not_passing(status):
    assert not is_passing(ApiException(status=status))


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), ApiException(status=429)])
def test_error_of_the_wire_or_of_a_busy_server_is_passing(error):
    assert is_passing(error)

"""What a request may hold: nothing is converted, and a refusal says in words which value was wrong."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import message, vectors

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BODY = {"model": "vectors", "support": vectors(count=4), "labels": [0, 0, 1, 1]}
JSON = {"Content-Type": "application/json"}
NUMBERS = {"seed": "generate", "steps": "generate", "samples": "generate", "grid": "landscape"}


def post(client, body, route="generate"):
    """Also NaN, which JSON does not have and many programs send."""
    return client.post(f"/v1/{route}", content=json.dumps(body), headers=JSON)


@FEW
@given(
    name=st.sampled_from(sorted(NUMBERS)),
    value=st.booleans() | st.integers(0, 9).map(str) | st.integers(1, 9).map(float) | st.lists(st.integers(), max_size=1),
)
def test_only_integers_are_integers(client, name, value):
    assert name in message(post(client, {**BODY, name: value}, NUMBERS[name]), 422)


@FEW
@given(
    row=st.integers(0, 3), column=st.integers(0, 5), value=st.sampled_from([True, "1", None, [], math.nan, math.inf, -math.inf])
)
def test_only_numbers_are_features(client, row, column, value):
    features = [list(r) for r in BODY["support"]["features"]]
    features[row][column] = value
    text = message(post(client, {**BODY, "support": {"features": features}}), 422)
    assert f"support.features[{row}][{column}]" in text
    if value is None or isinstance(value, float):
        assert ("is null" if value is None else "is NaN or infinite") in text


WORDS = {"null": None, "NaN or infinite": math.nan, "true": True, "false": False, "a list": [1], "an object": {"a": 1}}


@FEW
@given(place=st.integers(0, 3), word=st.sampled_from(sorted(WORDS)), regression=st.booleans())
def test_labels_that_are_none(client, place, word, regression):
    labels = [0, 0, 1, 1]
    labels[place] = WORDS[word]
    points = {"model": "curves", "support": {"features": [[0.1], [0.2], [0.3], [0.4]]}}
    text = message(post(client, {**(points if regression else BODY), "labels": labels}), 422)
    assert f"labels[{place}] is {word}" in text and "number" in text


@FEW
@given(first=st.integers(-(10**199), 10**199), second=st.integers(-(2**70), 2**70))
def test_integer_labels_of_any_size(client, first, second):
    if first == second:
        return
    answer = post(client, {**BODY, "labels": [first, first, second, second]})
    assert answer.status_code == 200 and answer.json()["classes"] == sorted([first, second])


def test_labels_that_are_too_long(client):
    for label in (10**200, -(10**4000), "x" * 201):
        others = [label, label, *([1, 1] if isinstance(label, int) else ["1", "1"])]
        assert "more than 200 characters" in message(post(client, {**BODY, "labels": others}), 422)
    points = {"model": "curves", "support": {"features": [[0.1], [0.2]]}}
    for label in (10**7, -(10**400), 1e300):
        assert "scale them" in message(post(client, {**points, "labels": [label, 1]}), 422)


@pytest.mark.parametrize("name", ["model", "support", "labels", "seed"])
def test_null(client, name):
    assert f"{name} is null" in message(post(client, {**BODY, name: None}), 422)

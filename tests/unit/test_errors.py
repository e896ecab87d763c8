"""The error family: one root, useful messages, copies that survive a process boundary."""

import copy
import pickle

import pytest

from cysession import errors

ALL = [getattr(errors, name) for name in errors.__all__]


def make(cls: type[errors.SessionError]) -> errors.SessionError:
    if cls is errors.SessionTooLarge:
        return errors.SessionTooLarge(70_000, 65_536)
    if cls is errors.NotSerializable:
        return errors.NotSerializable("['cart'][0]", "Engine")
    return cls()


@pytest.mark.parametrize("cls", ALL)
def test_every_error_has_the_one_root_and_explains_itself(cls: type[errors.SessionError]) -> None:
    assert issubclass(cls, errors.SessionError)
    assert str(make(cls))


@pytest.mark.parametrize("cls", ALL)
def test_errors_survive_copy_and_pickle(cls: type[errors.SessionError]) -> None:
    error = make(cls)
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is cls and str(twin) == str(error) and vars(twin) == vars(error)


def test_a_message_replaces_the_default() -> None:
    text = "the disk is gone; mount it again"
    assert str(errors.StorageUnavailable(text)) == text


def test_full_is_a_kind_of_unavailable_but_misconfigured_is_not() -> None:
    assert issubclass(errors.StorageFull, errors.StorageUnavailable)
    assert not issubclass(errors.StorageMisconfigured, errors.StorageUnavailable)


def test_errors_carry_their_evidence() -> None:
    too_large = errors.SessionTooLarge(70_000, 65_536)
    assert (too_large.size, too_large.limit) == (70_000, 65_536)
    assert "70000" in str(too_large) and "65536" in str(too_large)
    wrong = errors.NotSerializable("['cart'][0]", "Engine")
    assert (wrong.path, wrong.type_name) == ("['cart'][0]", "Engine")
    assert "['cart'][0]" in str(wrong) and "Engine" in str(wrong)

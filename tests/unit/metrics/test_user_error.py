import pickle

from cft_ray import UserError


def test_a_user_error_crosses_processes_whole():
    error = pickle.loads(pickle.dumps(UserError("what", where="there", fix="so")))  # noqa: S301
    assert (error.what, error.where, error.fix) == ("what", "there", "so")
    assert str(error) == str(UserError("what", where="there", fix="so"))

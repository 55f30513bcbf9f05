"""What a trial is told survives the way to another process."""

from cft_ray.execute.work import Work
from cft_ray.grid.loggers import Logger
from cft_ray.plan.specs import DatasetSpec
from cft_ray.plan.stage import Stage


def test_a_stage_with_loggers_arrives_as_it_was():
    stage = Stage(spec=DatasetSpec(toy="alpaca", columns={}, languages=("en",)), label="alpaca")
    loggers = (Logger(name="mlflow", tracking_uri="http://127.0.0.1:5000"), Logger(name="tensorboard"))
    sent = Work(stage, {}, "s3://bucket/x", "grid", "run", loggers, host=None)
    came = Work.decode(sent.encode())
    assert came.loggers == loggers and came.stage.fingerprint == stage.fingerprint
    assert (came.storage, came.grid, came.run, came.host) == (sent.storage, sent.grid, sent.run, None)

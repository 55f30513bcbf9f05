"""The judge that a grid names: an endpoint, or a local model."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from cft_ray.grid.settings import JudgeSettings, Template, TemplateChoice
from cft_ray.grid.words import PlaceName, Repository, Revision, wrong


def _loopback(url: str) -> bool:
    """Whether an address is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Judge(JudgeSettings):
    """The judge of AlpacaEval: an endpoint's (`model`, `base_url`), or a local model (`hub`, `path`, or `of` this grid)."""

    template: TemplateChoice = Field(default=Template(name="chat"), description="how a local judge's prompt is wrapped")
    insecure: bool = Field(
        default=False, description="send the key to an `http://` endpoint that is not this machine, where others may read it"
    )
    hub: Repository | None = Field(default=None, description="Hugging Face id of a local judge")
    revision: Revision | None = Field(default=None, description="commit, tag or branch of `hub`; a commit cannot move")
    path: PlaceName | None = Field(default=None, description="folder or URI of a local judge")
    of: str | None = Field(default=None, description="a checkpoint of this grid as local judge: `MODEL/CHECKPOINT`")

    @model_validator(mode="after")
    def _one_judge(self) -> "Judge":
        origins = [name for name in ("model", "hub", "path", "of") if getattr(self, name) is not None]
        if len(origins) != 1:
            raise wrong(f"{' and '.join(origins) or 'no judge'} given", "give exactly one of model, hub, path, of")
        if (self.base_url is not None) != (self.model is not None):
            raise wrong("half of an endpoint", "`base_url` goes with `model`: an endpoint and the judge's name there")
        if self.key_env is not None and (self.model is None or not self.key_env.isidentifier()):
            # What stands there may be the key itself, so it is not repeated.
            fix = "`key_env` is the name of the environment variable that holds the endpoint's key"
            raise wrong("this is no variable of an endpoint", fix)
        if self.base_url is not None:
            scheme, separator, rest = self.base_url.partition("://")
            if scheme not in ("http", "https") or not separator or "@" in rest or "?" in rest:
                raise wrong(
                    "this is no endpoint's address", "`base_url` is http://… or https://…, without credentials and options"
                )
            if scheme == "http" and self.key_env is not None and not self.insecure and not _loopback(self.base_url):
                fix = "https://…, or `insecure: true` where nobody else is on the way"
                raise wrong("the judge's key would travel in the clear", fix)
        if self.revision is not None and self.hub is None:
            raise wrong("a revision of no repository", "`revision` goes with `hub`")
        return self

    @property
    def settings(self) -> JudgeSettings:
        """What a stage obeys; where a local judge lies is told it as a checkpoint."""
        return JudgeSettings(**{name: getattr(self, name) for name in JudgeSettings.model_fields})

"""What a job gave: the files, what the content filter said of each, and the settings that made them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

PASSED, BLURRED = "pass", "blur"


class Verdict(BaseModel):
    """What the content filter found in a prompt or picture, and what became of it."""

    decision: Literal["pass", "review", "block"]
    outcome: str = Field(description="What became of it: pass, hold for review, blur, block.")
    reasons: list[str] = []
    id: str | None = Field(default=None, description="Its name in the server's audit record and review page.")


class Picture(BaseModel):
    """One picture of a job. Without a path it was not delivered; the verdict says why."""

    path: str | None = None
    seed: int
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    verdict: Verdict | None = Field(default=None, description="None where the content filter is off.")


class Timings(BaseModel):
    """Seconds of a job: until it began on the server, while it ran there, and in all."""

    queued: float
    ran: float
    total: float


class Server(BaseModel):
    """Who made the pictures."""

    url: str
    comfyui: str
    pack: str
    device: str


class Result(BaseModel):
    """A finished job."""

    status: Literal["done", "blocked"] = Field(description="blocked: the content filter let no picture through.")
    job_id: str
    pictures: list[Picture]
    prompt_verdict: Verdict | None = None
    notes: list[str] = Field(default=[], description="What the server said besides, such as words that do nothing.")
    request: dict[str, Any] = Field(description="The request with its seed; makes the same pictures again.")
    settings: dict[str, Any] = Field(description="The settings that were in force, defaults included.")
    models: dict[str, str] = Field(description="The model files, by what they are for.")
    timings: Timings
    server: Server

    @property
    def paths(self) -> list[str]:
        """The files that were written, in the order of their seeds."""
        return [picture.path for picture in self.pictures if picture.path]

    def __str__(self) -> str:
        """The result for people."""
        lines = []
        for picture in self.pictures:
            if picture.path:
                lines.append(f"{picture.path}  {picture.width}x{picture.height} px, seed {picture.seed}")
            verdict = picture.verdict
            if verdict and verdict.decision != PASSED:
                lines.append(f"  seed {picture.seed}: {verdict.outcome}. {' '.join(verdict.reasons)}")
        if self.prompt_verdict and self.prompt_verdict.decision != PASSED:
            lines.insert(0, f"The prompt: {self.prompt_verdict.outcome}. {' '.join(self.prompt_verdict.reasons)}")
        if self.status == "blocked":
            lines.insert(0, "The content filter let no picture through.")
        lines += self.notes
        shown = ("guidance_scale", "num_inference_steps", "true_cfg_scale", "aspect_ratio", "size")
        lines.append(", ".join(f"{name.replace('_', ' ')} {self.settings[name]}" for name in shown))
        lines.append(f"{self.timings.total:.1f} s in all, {self.timings.ran:.1f} s of them on {self.server.url}")
        return "\n".join(lines)

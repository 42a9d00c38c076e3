"""`hv image`: the images that machines are created from."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from hiveyard.api.client import ApiError, quoted
from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.options import JSON, image_reference


@click.group()
def image() -> None:
    """Build, list and remove images."""


@image.command("build")
@click.argument("name", default="default")
@click.option("--force", is_flag=True, help="Build it again even if it exists.")
@click.option("--provider", help="Also create what this provider needs (auto: the strongest that works here).")
@JSON
def build(name: str, force: bool, provider: str | None, as_json: bool) -> None:
    """Build an image from a recipe: NAME is one of Hiveyard's own recipes or a TOML file."""
    name = image_reference(name)
    query: dict[str, Any] = {"force": force} | ({"provider": provider} if provider else {})
    for message in connect().stream("POST", f"/v1/images/{quoted(name)}/build", **query):
        if "progress" in message:
            click.echo("· " + message["progress"], err=as_json)
        elif "error" in message:
            raise ApiError(**message["error"])
        else:
            click.echo(json.dumps(message) if as_json else f"{message['name']}  {message['id']}")


@image.command("ls")
@JSON
def ls(as_json: bool) -> None:
    """List the images that are built."""
    images = connect().call("GET", "/v1/images")
    if as_json:
        click.echo(json.dumps(images, indent=2))
        return
    rows = [
        [
            found["id"],
            found["name"],
            f"{found['size'] / 1e6:.0f} MB",
            show.age(found["created_at"] or time.time()),
            ", ".join(f"{name} {version}" for name, version in found["programs"].items()),
        ]
        for found in show.plain(images)
    ]
    show.table(rows, ["ID", "NAME", "SIZE", "AGE", "PROGRAMS"])


@image.command("rm")
@click.argument("image_ref", metavar="IMAGE")
@JSON
def remove(image_ref: str, as_json: bool) -> None:
    """Remove an image and what providers created from it."""
    gone = connect().call("DELETE", f"/v1/images/{quoted(image_ref)}")
    click.echo(json.dumps(gone) if as_json else gone["id"])

"""The page at /docs: the interface's own description as HTML, for which nothing is fetched from anywhere."""

import json

from markupsafe import Markup

_PAGE = Markup("""\
<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
code, pre {{ background: #8882; padding: .1em .3em }} td, th {{ text-align: left; padding: .2em .8em .2em 0;
vertical-align: top }} summary {{ cursor: pointer }} :root {{ color-scheme: light dark }}</style>
<h1>{title} {version}</h1><p>{about} For programs: <a href="/openapi.json">openapi.json</a>.</p>
{operations}</html>
""")
_OPERATION = Markup("<h2><code>{method} {path}</code></h2><p>{about}</p>{parameters}{body}{answers}\n")
_TABLE = Markup("<table>{rows}</table>")
_ROW = Markup("<tr><td><code>{name}</code></td><td>{kind}</td><td>{about}</td></tr>")
_MORE = Markup("<details><summary>{name}</summary>{content}</details>")


def page_of(schema: dict) -> str:
    """The page of an OpenAPI schema."""
    operations = [_operation(path, *found) for path, methods in schema["paths"].items() for found in methods.items()]
    info = schema["info"]
    texts = {"title": info["title"], "version": info["version"], "about": info["description"]}
    return str(_PAGE.format(operations=Markup("").join(operations), **texts))


def _operation(path, method, said):
    body = said.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    about = said.get("description") or said.get("summary", "")
    return _OPERATION.format(
        method=method.upper(),
        path=path,
        about=about,
        parameters=_table({found["name"]: found["schema"] | found for found in said.get("parameters", ())}),
        body=_table(body["properties"]) + _settings(body) if body else "",
        answers=_table(said["responses"]),
    )


def _settings(body):
    return _MORE.format(name="hyperparameters", content=_table(body["properties"]["hyperparameters"]["properties"]))


def _table(properties):
    rows = Markup("").join(
        _ROW.format(name=name, kind=_kind(schema), about=schema.get("description", ""))
        for name, schema in properties.items()
    )
    return _TABLE.format(rows=rows) if rows else rows


def _kind(schema):
    """The type of a value in a few words."""
    if "anyOf" in schema:
        return " or ".join(filter(None, map(_kind, schema["anyOf"])))
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return ", ".join(map(json.dumps, values)) or str(schema.get("type", ""))

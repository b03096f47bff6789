"""Asset events as the start of a tuning: what the event carried, in a template."""

from __future__ import annotations


def event_extra(key: str, *, otherwise: str) -> str:
    """A template for `extra[key]` of the newest Asset event that started the DAG run.

    :param otherwise: a Jinja expression for runs that no event started, such as `params.data`
    """
    events = (
        "(triggering_asset_events if triggering_asset_events is defined else triggering_dataset_events)"
        ".values() | list"
    )
    return f"{{% set events = {events} %}}{{{{ (events[-1] | last).extra[{key!r}] if events else {otherwise} }}}}"

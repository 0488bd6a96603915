"""What a name that was not found was perhaps meant to be."""

from __future__ import annotations

import difflib
from typing import Any

from modal_proto import api_pb2

from modal_emulator.apps.apps import Apps
from modal_emulator.rpc.rpc import Message


class SuggestionService:
    """Answers ObjectSuggest, from which the command line makes its "Did you mean"."""

    def __init__(self, apps: Apps) -> None:
        self._apps = apps

    async def ObjectSuggest(self, request: Message) -> Message:
        """Return the deployed apps or functions with a name like the one that was asked for."""
        named = self._named(request)
        found = difflib.get_close_matches(request.query, named, n=max(request.limit, 1))
        suggestions = [named[name] for name in found]
        return api_pb2.ObjectSuggestResponse(suggestions=suggestions)

    def _named(self, request: Any) -> dict[str, Any]:
        """Return what may be suggested, by the name that the user would have given."""
        apps = self._apps.all_deployed(request.environment_name)
        named = api_pb2.ObjectSuggestion
        if request.kind == request.OBJECT_SUGGEST_KIND_APP:
            return {app.name: named(object_name=app.name) for app in apps}
        if request.kind == request.OBJECT_SUGGEST_KIND_FUNCTION:
            return {
                f"{app.name}/{name}": named(app_name=app.name, object_name=name)
                for app in apps
                for name in app.function_ids
            }
        return {}

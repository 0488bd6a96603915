"""Suggests similar names for one that was not found."""

from __future__ import annotations

import difflib

from modal_proto import api_pb2

from modal_emulator.apps.apps import Apps
from modal_emulator.rpc.rpc import Message


class SuggestionService:
    """Answers ObjectSuggest, which is behind "Did you mean" of the command line."""

    def __init__(self, apps: Apps) -> None:
        self._apps = apps

    async def ObjectSuggest(self, request: Message) -> Message:
        """Return the deployed apps or functions with a similar name."""
        candidates = self._candidates(request)
        found = difflib.get_close_matches(request.query, candidates, n=max(request.limit, 1))
        suggestions = [candidates[name] for name in found]
        return api_pb2.ObjectSuggestResponse(suggestions=suggestions)

    def _candidates(self, request: Message) -> dict[str, Message]:
        """Return what can be suggested, by the name that the user writes."""
        apps = self._apps.all_deployed(request.environment_name)
        suggestion = api_pb2.ObjectSuggestion
        if request.kind == request.OBJECT_SUGGEST_KIND_APP:
            return {app.name: suggestion(object_name=app.name) for app in apps}
        if request.kind == request.OBJECT_SUGGEST_KIND_FUNCTION:
            return {
                f"{app.name}/{name}": suggestion(app_name=app.name, object_name=name)
                for app in apps
                for name in app.function_ids
            }
        return {}

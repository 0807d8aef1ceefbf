"""Tests of other files that are true of a pool on a cluster of Dask, too: the same functions, with another pool."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

import jobs
from aiopool import AioPool
from aiopool.backends.dask import DaskBackend
from dask_cluster import Cluster
from test_inline import OPERATIONS
from test_outcomes import (
    test_a_base_exception_of_the_users_own_arrives_as_itself,
    test_a_cause_and_notes_are_kept,
    test_a_context_is_kept,
    test_a_function_that_returns_an_exception_returns_it,
    test_a_group_keeps_its_members_chains_and_one_that_does_not_pickle_harms_no_other,
    test_a_result_that_does_not_unpickle_here_fails_its_call_only,
    test_an_exception_that_breaks_pickling_fails_one_call,
    test_an_exception_that_cannot_be_looked_at_fails_one_call,
    test_an_exception_that_would_harm_the_caller_arrives_wrapped,
    test_an_ordinary_exception_arrives_as_itself_with_the_workers_traceback,
    test_an_unpicklable_argument_raises_at_the_call,
    test_an_unpicklable_exception_keeps_type_text_and_traceback,
    test_an_unpicklable_result_is_a_clear_error,
    test_arguments_that_do_not_unpickle_in_the_worker_fail_their_call_only,
    test_arguments_travel_as_they_are_at_the_call,
    test_callables_of_all_kinds_are_called,
    test_the_errors_can_be_pickled_themselves,
    test_values_of_every_size_go_both_ways,
)
from test_pool import (
    test_a_callback_that_raises_goes_to_the_loops_exception_handler,
    test_a_failure_with_an_error_callback_counts_as_seen,
    test_a_map_over_an_async_input_can_be_cancelled_while_it_reads,
    test_a_result_has_the_verbs_of_multiprocessing,
    test_bad_arguments_of_calls_are_refused_at_the_callers_line,
    test_callbacks_are_called_with_value_or_exception,
    test_map_and_starmap_return_values_in_order,
    test_results_are_futures,
    test_submit_leaves_all_keywords_to_the_function,
    test_what_an_input_raises_when_it_is_asked_for_its_items_is_its_own,
)

__all__ = [name for name in dir() if name.startswith("test_")]

pytestmark = pytest.mark.once

OF_ONE_WORKER = {"calls of one worker", "imap_unordered"}
"""What several workers do not do alike."""


@pytest.fixture
async def pool(dask: Cluster):
    """A pool there."""
    async with AioPool(backend=DaskBackend(dask.address)) as pool:
        yield pool


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in OF_ONE_WORKER])
async def test_the_outcome_is_that_of_a_worker(operation: str, dask: Cluster) -> None:
    """Value for value, error for error."""
    found = []
    token = jobs.request.set("us")
    for make in (partial(AioPool, 1), partial(AioPool, backend=DaskBackend(dask.address))):
        async with make(context_vars=[jobs.request]) as pool:
            found.append(await OPERATIONS[operation](pool))
    jobs.request.reset(token)
    assert found[0] == found[1]

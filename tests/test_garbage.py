import gc

import pytest

from carvana_batch.garbage import search_for_garbage_paused


@pytest.mark.parametrize("before", [True, False])
def test_the_search_is_as_before_afterwards_also_after_an_error(before):
    try:
        (gc.enable if before else gc.disable)()
        with search_for_garbage_paused():
            assert not gc.isenabled()
        assert gc.isenabled() is before
        with pytest.raises(KeyError), search_for_garbage_paused():
            raise KeyError
        assert gc.isenabled() is before
    finally:
        gc.enable()

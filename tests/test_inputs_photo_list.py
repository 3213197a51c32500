import os
import pickle
import tracemalloc
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from carvana_batch.inputs.photo_list import PhotoList
from carvana_batch.values import ImageRef

ODD = [
    ImageRef("a", Path("in/a.jpg")),
    ImageRef("", Path()),
    ImageRef("\xe4\n\u65e5", Path("/in/\xe4\n\u65e5.jpg")),
    ImageRef("\udcff\udc80", Path(os.fsdecode(b"in/\xff\x80.jpg"))),
]
NAMES = st.binary(max_size=6).filter(lambda name: 0 not in name).map(os.fsdecode)


def test_any_name_comes_back():
    photos = PhotoList(ODD)
    assert len(photos) == 4
    assert list(photos) == ODD
    assert [photos[index].path for index in (0, -1)] == [ODD[0].path, ODD[-1].path]
    assert list(pickle.loads(pickle.dumps(photos))) == ODD  # noqa: S301
    assert list(PhotoList([])) == []
    assert not PhotoList([])


@given(st.lists(st.builds(ImageRef, NAMES, NAMES)), st.slices(12), st.data())
def test_it_is_selected_from_and_sorted_like_a_list(refs, part, data):
    photos = PhotoList(iter(refs))
    assert list(photos[part]) == refs[part]
    chosen = data.draw(st.lists(st.sampled_from(range(len(refs))))) if refs else []
    some = photos.select(iter(chosen))
    assert list(some) == [refs[index] for index in chosen]
    assert list(some[::-1].sorted()) == sorted(
        (refs[index] for index in chosen), key=lambda ref: (os.fsencode(ref.key), os.fsencode(ref.path_text))
    )
    assert (ordered := some.sorted()).sorted() is ordered
    assert PhotoList.of(photos) is photos
    assert list(PhotoList.of(refs)) == refs


def test_names_that_are_no_text_are_in_the_order_of_their_bytes():
    names = [b"\x80", b"\xc3\xa9", b"\xc4", b"\xe6\x97\xa5"]
    photos = PhotoList([ImageRef(os.fsdecode(name), "a.jpg") for name in reversed(names)])
    assert [os.fsencode(ref.key) for ref in photos.sorted()] == names


def test_100_000_photos_take_little_memory():
    def refs():
        return (ImageRef(f"folder/{n:06}_01", f"/data/folder/{n:06}_01.jpg") for n in range(100_000))

    names = sum(len(ref.key) + len(ref.path_text) for ref in refs())
    tracemalloc.start()
    photos = PhotoList(refs())
    half = photos[::2].select(range(25_000))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < names + 16 * len(photos)
    assert len(pickle.dumps(photos)) < names + 14 * len(photos)
    assert [photos[index].key for index in (0, 1, 99_999)] == [f"folder/{n:06}_01" for n in (0, 1, 99_999)]
    assert [half[index].key for index in (0, 24_999)] == ["folder/000000_01", "folder/049998_01"]

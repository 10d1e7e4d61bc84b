import gzip

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from jaxops.data import Dataset

CSV = """name,age,income,city
Ann,31,10.5,Oslo
"Bo, jr",22,,"New
York"
Cy,45,7,
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="people.csv", encoding="utf-8"):
        path = tmp_path / name
        raw = text if isinstance(text, bytes) else text.encode(encoding)
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write


@pytest.mark.parametrize("name", ["people.csv", "people.csv.gz"])
def test_csv(write, name):
    path = write(CSV, name)
    data = Dataset.from_csv(path)
    people = data.train
    assert [*people] == ["name", "age", "income", "city"] and data.source == str(path)
    assert people["name"].tolist() == ["Ann", "Bo, jr", "Cy"]
    assert people["city"].tolist() == ["Oslo", "New\nYork", ""]
    assert people["age"].dtype == np.int64 and people["age"].tolist() == [31, 22, 45]
    assert people["income"].dtype == np.float64
    np.testing.assert_array_equal(people["income"], [10.5, np.nan, 7])


def test_csv_columns_in_the_order_asked_for(write):
    data = Dataset.from_csv(write(CSV), columns=["city", "age"])
    assert [*data.train] == ["city", "age"]


def test_csv_missing_values(write):
    text = "a,b,c\n1,x,nan\n?,?,2\n"
    data = Dataset.from_csv(write(text), missing=["?", "nan"]).train
    np.testing.assert_array_equal(data["a"], [1, np.nan])
    np.testing.assert_array_equal(data["c"], [np.nan, 2])
    assert data["b"].tolist() == ["x", ""]
    # words that pandas would take for missing are text
    assert Dataset.from_csv(write("a\nNA\nNone\n")).train["a"].tolist() == ["NA", "None"]


def test_csv_with_a_byte_order_mark(write):
    assert [*Dataset.from_csv(write("\ufeffa,b\n1,2\n")).train] == ["a", "b"]


def test_csv_in_another_encoding(write):
    path = write("town,n\nMünchen,1\n", encoding="latin-1")
    with pytest.raises(
        ValueError, match=r'people.csv must be utf-8, got 0xfc at byte 8; .*"latin-1"'
    ):
        Dataset.from_csv(path)
    assert Dataset.from_csv(path, encoding="latin-1").train["town"][0] == "München"


def test_csv_encoding_position_far_into_the_file(write):
    text = "town,n\n" + "Berlin,2\n" * 50_000
    path = write(text.encode() + "Zürich,1\n".encode("latin-1"), "towns.csv.gz")
    with pytest.raises(ValueError, match=f"byte {len(text) + 1};"):
        Dataset.from_csv(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3\n", "line 3 must have 2 fields, as the header, got 1"),
        ("a,b\n1,2\n3,4\n5,6,7\n", "line 4 must have 2 fields, as the header, got 3"),
        ('a,b\n"1\n1",2\n3,4,5\n', "line 4 must have 2 fields, as the header, got 3"),
        ("a,b\n1,2,\n3,4,\n", "line 2 must have 2 fields, as the header, got 3"),
        ("", "empty file"),
        ("\n\n", "empty file"),
        ("a,b\n", "at least 1 row, got 0"),
        ("a,b,a\n1,2,3\n", "each column once in the header, got 'a' twice"),
    ],
)
@pytest.mark.parametrize("name", ["bad.csv", "bad.csv.gz"])
def test_bad_csv(write, text, message, name):
    path = write(text, name)
    with pytest.raises(ValueError, match=message) as caught:
        Dataset.from_csv(path)
    assert str(path) in str(caught.value)


def test_csv_without_a_column_asked_for(write):
    with pytest.raises(ValueError, match="must have a column 'wage', got name, age, income"):
        Dataset.from_csv(write(CSV), columns=["age", "wage"])


def test_csv_cut_off_gzip(write):
    path = write(CSV * 100, "people.csv.gz")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"people.csv.gz must be a whole gzip file"):
        Dataset.from_csv(path)


def test_parquet_gives_what_csv_gives(write, tmp_path):
    path = write(CSV)
    pd.read_csv(path).to_parquet(tmp_path / "people.parquet")
    people = Dataset.from_parquet(tmp_path / "people.parquet").train
    for name, value in Dataset.from_csv(path).train.items():
        np.testing.assert_array_equal(people[name], value)
        assert people[name].dtype == value.dtype
    assert [*Dataset.from_parquet(tmp_path / "people.parquet", ["age"]).train] == ["age"]
    with pytest.raises(ValueError, match="must have a column 'wage'"):
        Dataset.from_parquet(tmp_path / "people.parquet", columns=["wage"])


def test_parquet_with_missing_whole_numbers_and_lists(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"n": pd.array([1, None], "Int64")}).to_parquet(path)
    np.testing.assert_array_equal(Dataset.from_parquet(path).train["n"], [1, np.nan])
    pd.DataFrame({"v": [[1.0, 2.0], [3.0]]}).to_parquet(path)
    with pytest.raises(
        ValueError, match=r"t.parquet: column 'v' must be numbers or text, got array"
    ):
        Dataset.from_parquet(path)


def test_broken_parquet(write):
    with pytest.raises(ValueError, match=r"t.parquet must be a whole Parquet file"):
        Dataset.from_parquet(write("PAR1, or not", "t.parquet"))


def test_npy_table_with_its_label_last(tmp_path):
    table = np.array([[0.5, 2, 1], [3, 4, -1], [5, 6, 0]])
    np.save(tmp_path / "data.npy", table)
    columns = Dataset.from_npy(tmp_path / "data.npy", label=-1).train
    np.testing.assert_array_equal(columns["features"], table[:, :2])
    assert columns["features"].dtype == np.float32
    assert columns["label"].dtype == np.int64 and columns["label"].tolist() == [1, -1, 0]
    first = Dataset.from_npy(tmp_path / "data.npy", label=0).train
    assert first["label"].tolist() == [0.5, 3, 5]
    np.testing.assert_array_equal(first["features"], table[:, 1:])
    assert [*Dataset.from_npy(tmp_path / "data.npy").train] == ["features"]


def test_npz_and_structured_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3)), label=np.arange(2))
    assert Dataset.from_npy(tmp_path / "a.npz").train["label"].tolist() == [0, 1]
    np.save(tmp_path / "b.npy", np.array([(1, 2.5), (3, 4.5)], [("n", "i4"), ("x", "f4")]))
    columns = Dataset.from_npy(tmp_path / "b.npy").train
    assert columns["n"].tolist() == [1, 3] and columns["x"].dtype == np.float32
    with pytest.raises(ValueError, match=r"label must be None for named columns .*, got -1"):
        Dataset.from_npy(tmp_path / "b.npy", label=-1)


def test_bad_npy(tmp_path):
    path = tmp_path / "bad.npy"

    def fails(message, **arguments):
        with pytest.raises(ValueError, match=message) as caught:
            Dataset.from_npy(path, **arguments)
        assert str(path) in str(caught.value)

    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    fails("Object arrays cannot be loaded")
    np.save(path, np.ones((100, 3)))
    fails(r"label must be in \[-3, 3\) .*, got 3", label=3)
    path.write_bytes(path.read_bytes()[:-8])
    fails("must be a whole NumPy file")
    path.write_bytes(b"")
    fails("must be a whole NumPy file")
    np.save(path, np.ones((2, 3, 4)))
    fails("must be a 2-D table .* of rank 3")
    np.save(path, np.array([[1e300, 1]]))
    fails(r"must have numbers that float32 holds, got 1e\+300 in row 0", label=1)
    path.write_bytes(
        path.read_bytes().replace(b"(1, 2), }             ", b"(1000000000000, 2), } ")
    )
    fails("must be a whole NumPy file of plain arrays")
    np.save(path, np.ones((0, 3)))
    fails("must have at least 1 row, got 0")


def picture(path, size, colour, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_image_folder(tmp_path):
    picture(tmp_path / "dog" / "1.png", (8, 6), (255, 0, 0))
    picture(tmp_path / "cat" / "deep" / "2.PNG", (4, 3), 128, "L")
    picture(tmp_path / "cat" / "1.png", (5, 5), (0, 0, 255))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    data = Dataset.from_image_folder(tmp_path, size=(6, 8))
    assert data.classes == ("cat", "dog") and data.train["label"].tolist() == [0, 0, 1]
    images = data.train["image"]
    assert images.shape == (3, 6, 8, 3) and images.dtype == np.uint8
    colours = [[0, 0, 255], [128] * 3, [255, 0, 0]]
    np.testing.assert_array_equal(images, np.tile(np.reshape(colours, (3, 1, 1, 3)), (1, 6, 8, 1)))
    assert Dataset.from_image_folder(tmp_path, (4, 4), channels=1).train["image"].shape[1:] == (
        4,
        4,
        1,
    )


def test_image_folder_height_comes_first_and_photos_stand_upright(tmp_path):
    half = np.zeros((4, 6, 3), np.uint8)
    half[:2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: the white top comes to the right
    (tmp_path / "a").mkdir()
    Image.fromarray(half).save(tmp_path / "a" / "1.png", exif=exif)
    image = Dataset.from_image_folder(tmp_path, size=(6, 4)).train["image"][0]
    np.testing.assert_array_equal(image, np.rot90(half, -1))


def test_what_is_transparent_shows_white(tmp_path):
    """A black sign on nothing is not all black, whatever colour lies beneath."""
    sign = np.zeros((2, 2, 4), np.uint8)
    sign[0, :, 3] = 255, 51  # black, a fifth of black; beneath, black that does not show
    (tmp_path / "a").mkdir()
    Image.fromarray(sign).save(tmp_path / "a" / "1.png")
    Image.fromarray(sign[..., 2:], "LA").save(tmp_path / "a" / "2.png")
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 0, 0, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "a" / "3.png", transparency=0)
    for channels in (1, 3):
        images = Dataset.from_image_folder(tmp_path, (2, 2), channels).train["image"]
        assert images[0, ..., 0].tolist() == images[1, ..., 0].tolist() == [[0, 204], [255, 255]]
        assert images[2, ..., -1].tolist() == [[255, 0], [0, 0]]


def test_image_folder_with_train_and_test(tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for row in range(count):
            picture(tmp_path / split / "a" / f"{row}.png", (2, 2), row, "L")
    picture(tmp_path / "train" / "b" / "0.png", (2, 2), 9, "L")
    data = Dataset.from_image_folder(tmp_path, size=(2, 2), channels=1)
    assert data.train["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 9]
    assert data.classes == ("a", "b") and data.test["label"].tolist() == [0]
    picture(tmp_path / "test" / "c" / "0.png", (2, 2), 9, "L")
    with pytest.raises(ValueError, match=r"of the classes \['a', 'b'\], got 'c'"):
        Dataset.from_image_folder(tmp_path, size=(2, 2))


@pytest.mark.parametrize("names", [("train", "val"), ("train", "valid", "test"), ("Training",)])
def test_image_folders_of_splits(tmp_path, names):
    for number, split in enumerate(names):
        for colour, name in enumerate(("ants", "bees")):
            for row in range(number + 1):
                picture(tmp_path / split / name / f"{row}.png", (2, 2), 10 * colour, "L")
    (tmp_path / "__MACOSX").mkdir()
    data = Dataset.from_image_folder(tmp_path, (2, 2), channels=1)
    found = ("train", "validation", "test")[: len(names)]
    assert data.classes == ("ants", "bees") and tuple(data.splits) == found
    for number, columns in enumerate(data.splits.values()):
        wanted = np.repeat([0, 1], number + 1)
        assert columns["label"].tolist() == wanted.tolist()
        np.testing.assert_array_equal(columns["image"][:, 0, 0, 0], 10 * wanted)


def test_classes_may_have_the_names_of_splits(tmp_path):
    for name in ("bus", "test", "train"):
        picture(tmp_path / name / "1.png", (2, 2), 0)
    data = Dataset.from_image_folder(tmp_path, (2, 2))
    assert data.classes == ("bus", "test", "train") and list(data.splits) == ["train"]


@pytest.mark.parametrize(
    ("pictures", "folders", "size", "channels", "message"),
    [
        (["cat/1.png"], ["bird"], (2, 2), 3, r"bird must hold images .*\.jfif.*, got none"),
        (["cat/1.png", "2.png"], [], (2, 2), 3, r"a folder for each class, got .*2\.png"),
        (["2019/cat/1.png"], [], (2, 2), 3, "got folders of folders .2019.; give .*2019$"),
        (["val/a/1.png", "test/a/1.png"], [], (2, 2), 3, "must hold train .* got test, val"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], [], (2, 2), 3, "got train, val, valid"),
        (["train/a/1.png", "test/1.png"], [], (2, 2), 3, "test must .*train, .* for prediction$"),
        (
            ["train/cat.0.png", "test/1.png"],
            [],
            (2, 2),
            3,
            "got images in test, train, which name no",
        ),
        (["train/a/1.png", "labels/1.png"], [], (2, 2), 3, "and no others, got labels, train"),
        (["cat/1.png"], [], 8, 3, r"size must be \(height, width\) in pixels, got 8"),
        (["cat/1.png"], [], (8.0, 8), 3, r"size must be .* got \(8.0, 8\)"),
        (["cat/1.png"], [], (8, 8), 4, r"channels must be 1 \(grey\) or 3 \(colour\), got 4"),
    ],
)
def test_image_folders_that_are_refused(tmp_path, pictures, folders, size, channels, message):
    for name in pictures:
        picture(tmp_path / name, (2, 2), 0)
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=message):
        Dataset.from_image_folder(tmp_path, size, channels)


def test_an_image_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    picture(tmp_path / "cat" / "huge.png", (40, 40), 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # Pillow refuses twice as many
    with pytest.raises(ValueError, match=r"huge\.png must be a readable image, .*1600 pixels"):
        Dataset.from_image_folder(tmp_path, (2, 2))


def test_broken_images_are_named(tmp_path):
    picture(tmp_path / "a" / "good.png", (32, 32), (1, 2, 3))
    broken = tmp_path / "a" / "broken.png"
    broken.write_bytes((tmp_path / "a" / "good.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"broken.png must be a readable image"):
        Dataset.from_image_folder(tmp_path, size=(2, 2))
    broken.write_text("text")
    with pytest.raises(ValueError, match=r"broken.png must be a readable image"):
        Dataset.from_image_folder(tmp_path, size=(2, 2))
    broken.unlink()
    Image.fromarray(np.full((2, 2), 40_000, np.uint16)).save(tmp_path / "a" / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png .*it must have 8 bits a channel, got mode I"):
        Dataset.from_image_folder(tmp_path, size=(2, 2))


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Dataset.from_image_folder(tmp_path / "nowhere", size=(2, 2))
    with pytest.raises(ValueError, match="for each class, got no folders"):
        Dataset.from_image_folder(tmp_path, size=(2, 2))
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"must hold images .*, got none"):
        Dataset.from_image_folder(tmp_path, size=(2, 2))

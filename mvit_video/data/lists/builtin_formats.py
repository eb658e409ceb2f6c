"""The list formats of this package, in the order in which they are tried; the last one accepts everything."""

from mvit_video.data.lists.charades import Charades
from mvit_video.data.lists.class_folders import ClassFolders
from mvit_video.data.lists.formats import register_list_reader
from mvit_video.data.lists.frame_lists import FrameList
from mvit_video.data.lists.official import Hmdb51, Kinetics, Something, Ucf101
from mvit_video.data.lists.path_label_rows import PathLabelRows
from mvit_video.data.lists.tables import Table

register_list_reader("hmdb51", Hmdb51())
register_list_reader("class folders", ClassFolders())
register_list_reader("something-something", Something())
register_list_reader("frame list", FrameList())
register_list_reader("kinetics", Kinetics())
register_list_reader("charades", Charades())
register_list_reader("ucf101", Ucf101())
register_list_reader("table", Table())
register_list_reader("path label", PathLabelRows())

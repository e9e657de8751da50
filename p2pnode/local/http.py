from p2pnode.cli.http import *
from p2pnode.cli.http import Client, refusal

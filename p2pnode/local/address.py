from p2pnode.api.address import *

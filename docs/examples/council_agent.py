"""An agent: claims the roles it has a skill for, works once the council is active, and says when it is done."""

from p2pnode.client import Client
from p2pnode.errors import Conflict

with Client() as sidecar, sidecar.watch_councils() as councils:
    skills, tried = set(sidecar.agent()["capabilities"]), set()
    for council in councils:
        for role in council["roles"]:
            place = council["council_id"], role["role_name"]
            fence = {"term": role["term"], "n": role["n"]}
            going, mine = council["status"] in ("forming", "active"), role["role_name"] in council["mine"]
            try:
                if going and role["state"] == "open" and skills & set(role["required_skills"]) and place not in tried:
                    tried.add(place)
                    sidecar.claim(*place)
                elif council["status"] == "active" and mine and (*place, *fence.values()) not in tried:
                    tried.add((*place, *fence.values()))
                    print(f"working as {role['role_name']} for {council['project_name']}", flush=True)
                    sidecar.report_status(place[0], "completed", role_name=place[1], message="done", **fence)
            except Conflict as error:  # somebody was faster, or the role is ours no longer
                print(f"{role['role_name']}: {error.reason}", flush=True)

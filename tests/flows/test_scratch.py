import time

from tests.flows.conftest import *


def test_x(project, origin, prefect_api):
    rows, bodies = serve(origin, 30)
    project.manifest(rows)
    for args in (("run","job.yaml","--json"),("run","job.yaml"),("status","job.yaml"),("plan","job.yaml"),("failures","job.yaml"),("verify","job.yaml"),("init","x.yaml")):
        t=time.time()
        r = project.ferry(*args)
        print("=====",args, r.code, round(time.time()-t,2)); print(r.stdout); print("-- err"); print(r.stderr)
    print(prefect_api.runs(project.name)[0])
    print([prefect_api.chunk_states(r) for r in prefect_api.runs(project.name)])
    print(list(project.files()))

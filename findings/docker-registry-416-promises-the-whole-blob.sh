#!/usr/bin/env bash
# docker-registry: the answer 416 to a range promises the length of the whole blob.
#
# Who resumes a download that was whole already asks for `bytes=SIZE-`, and a server answers 416. One would guess that this
# answer is a message of its own, with the length of its text. The registry sets Content-Length to the size of the blob
# before it looks at the range, and the header stays: the client is told to wait for SIZE bytes, gets a line of 33 bytes and
# the end of the connection. So a client sees a broken transfer where it should see "nothing is left": http.client raises
# IncompleteRead, `curl -C -` ends with status 18 (7.88.1, by hand). For a blob shorter than the line nothing comes at all.
# The answer 412 to If-Match is of the same kind: as long as the blob by its header, and empty. Only the status and
# `Content-Range: bytes */SIZE` can be relied on; the text of these answers must not be waited for. Ranges that can be
# satisfied, also those that reach beyond the end, are answered as they should be.
#
# Version: docker-registry 2.8.2 (Debian 12).
# Seen: see `expected` at the end.
#
# Needs Debian 12 on amd64, apt's lists and Python 3. The registry listens on 127.0.0.1, on a free port. Everything is in a
# temporary folder.
set -euo pipefail

work=$(mktemp -d)
registry=
trap '[ -z "$registry" ] || { kill "$registry"; wait "$registry" || true; } 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
chmod 755 .
apt-get download -qq docker-registry=2.8.2+ds1-1 >apt.log 2>&1 || { cat apt.log; exit 1; }
dpkg-deb -x docker-registry_*.deb unpacked

cat >config.yml <<CONFIG
version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/blobs}}
http: {addr: "127.0.0.1:0"}
CONFIG
unpacked/usr/bin/docker-registry serve config.yml >registry.log 2>&1 &
registry=$!
for _ in $(seq 100); do
    port=$(sed -n 's/.*listening on 127\.0\.0\.1:\([0-9]*\).*/\1/p' registry.log)
    [ -z "$port" ] || break
    kill -0 "$registry" || break
    sleep 0.1
done
[ -n "$port" ] || { cat registry.log; exit 1; }

cat >ask.py <<'PYTHON'
import hashlib
import http.client
import sys


def ask(method, target, body=None, **headers):
    """Return the answer and its body as far as it came."""
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
    connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    try:
        return answer, answer.read(), ""
    except http.client.IncompleteRead as error:
        return answer, error.partial, ", then IncompleteRead"
    finally:
        connection.close()


def push(data):
    answer, _, _ = ask("POST", "/v2/app/blobs/uploads/")
    target = "/v2/" + answer.headers["Location"].split("/v2/", 1)[1]
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    answer, _, _ = ask("PUT", f"{target}&digest={digest}", data, Content_Type="application/octet-stream")
    assert answer.status == 201, answer.status
    return f"/v2/app/blobs/{digest}"


long, short = push(b"x" * 1000), push(b"x" * 10)
for target, headers in (
    (long, {"Range": "bytes=900-999"}),
    (long, {"Range": "bytes=900-5000"}),
    (long, {"Range": "bytes=1000-"}),
    (short, {"Range": "bytes=10-"}),
    (long, {"If_Match": '"other"'}),
):
    answer, body, end = ask("GET", target, **headers)
    print(f"{1000 if target == long else 10} bytes, {' '.join(headers.values())}: {answer.status} {answer.reason}")
    print(f"  Content-Range: {answer.headers['Content-Range']}")
    print(f"  Content-Length: {answer.headers['Content-Length']}; {len(body)} bytes came{end}")
    if answer.status >= 400 and body:
        print(f"  {body.decode().strip()}")
PYTHON

seen() {
    unpacked/usr/bin/docker-registry --version | sed 's/^[^ ]* //'
    python3 ask.py "$port"
}
expected() {
    cat <<'EXPECTED'
github.com/docker/distribution 2.8.2+ds1
1000 bytes, bytes=900-999: 206 Partial Content
  Content-Range: bytes 900-999/1000
  Content-Length: 100; 100 bytes came
1000 bytes, bytes=900-5000: 206 Partial Content
  Content-Range: bytes 900-999/1000
  Content-Length: 100; 100 bytes came
1000 bytes, bytes=1000-: 416 Requested Range Not Satisfiable
  Content-Range: bytes */1000
  Content-Length: 1000; 33 bytes came, then IncompleteRead
  invalid range: failed to overlap
10 bytes, bytes=10-: 416 Requested Range Not Satisfiable
  Content-Range: bytes */10
  Content-Length: 10; 0 bytes came, then IncompleteRead
1000 bytes, "other": 412 Precondition Failed
  Content-Range: None
  Content-Length: 1000; 0 bytes came, then IncompleteRead
EXPECTED
}
seen >seen.txt 2>errors.txt || { cat seen.txt errors.txt registry.log; exit 1; }
expected | diff - seen.txt || { echo "this has changed"; exit 1; }
cat seen.txt

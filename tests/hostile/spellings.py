"""Addresses that no input may lead to, and URLs that say something else than they seem to."""

from __future__ import annotations

from tests.hostile.answers import CANARY

# Hosts that are, or name, addresses which are not public.
PRIVATE_HOSTS = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "localhost", "LOCALHOST", "10.0.0.1"),
    *("172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.100.100.200"),
    *("169.254.1.1", "169.254.169.254", "169.254.170.2", "192.0.0.1", "192.0.0.192"),
    *("192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *("240.0.0.1", "255.255.255.255"),
    *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[fc00::1]", "[fd00:ec2::254]", "[fe80::1]"),
    *("[fe80::1%25lo]", "[fec0::1]", "[ff02::1]", "[100::1]", "[5f00::1]", "[3fff::1]"),
    *("[2001:db8::1]", "[2001:10::1]", "[2001:20::1]", "[4000::1]"),
    # IPv4 in IPv6: mapped, compatible, translated, NAT64, 6to4, Teredo.
    *("[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]", "[::ffff:a00:1]", "[::127.0.0.1]"),
    *("[::ffff:0:127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::169.254.169.254]"),
    *("[64:ff9b:1::a00:1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2001:0:7f00:1::1]"),
    # The same in hexadecimal, and in the digits of other scripts.
    *("0x7f.0x0.0x0.0x1", "0x7f.1", "0x7f000001", "0xa9fea9fe"),
    *("\u2460\u2461\u2466.0.0.1", "127\u30020\u30020\u30021"),
    # Names, which the tests' name server knows.
    *("loopback.example", "private.example", "metadata.example", "unique-local.example"),
    *("mapped.example", "to-private.example"),
]
# Hosts that the URL parser refuses before anything is looked up.
BROKEN_HOSTS = [
    *("2130706433", "2852039166", "017700000001", "0", "127.1", "127.0.1", "0177.1"),
    *("[::1", "[::g]", "[127.0.0.1", "", "media.example:99999", "media.example:0x1bb"),
    *(f"media.example\\@127.0.0.1/{CANARY}", "a]b"),
]
# URLs of the wrong kind, by name.
WRONG_URLS = {
    "http": "http://media.example/ok.png",
    "http-loopback": f"http://127.0.0.1/{CANARY}",
    "http-port-443": "http://media.example:443/ok.png",
    "port-80": "https://media.example:80/ok.png",
    "port-22": "https://media.example:22/",
    "port-8443": "https://media.example:8443/",
    "port-0": "https://media.example:0/",
    "user": "https://someone@media.example/ok.png",
    "password": f"https://user:{CANARY}@media.example/ok.png",
    "host-as-user": "https://media.example@127.0.0.1/",
    "port-as-password": "https://media.example:443@127.0.0.1/",
    "empty-user": "https://:@127.0.0.1/",
    "no-host": "https:///ok.png",
    "fragment": f"https://127.0.0.1#@media.example/{CANARY}",
    "query": "https://127.0.0.1?@media.example/",
}
# Texts in place of a URL or base64.
NO_URLS = {
    "file": "file:///etc/passwd",
    "file-short": "file:/etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
    "ftp": f"ftp://127.0.0.1/{CANARY}",
    "dict": "dict://127.0.0.1:11211/stats",
    "ldap": "ldap://127.0.0.1/",
    "jar": "jar:https://media.example/ok.png!/x",
    "s3": "s3://bucket/key",
    "javascript": "javascript:alert(1)",
    "one-slash": "https:/media.example/ok.png",
    "two-schemes": "url:https://127.0.0.1/",
    "no-scheme": "//127.0.0.1/ok.png",
    "share": "\\\\127.0.0.1\\share\\a.png",
    "path": "/etc/passwd",
    "parent": "../../../../etc/passwd",
    "data-html": "data:text/html,<script>alert(1)</script>",
    "data-plain": "data:image/png,iVBORw0KGgo",
    "data-no-comma": "data:image/png;base64",
    "data-empty": "data:image/png;base64,",
    "data-percent": "data:image/png;base64,iVBORw0KGgo%3D",
    "data-long-header": "data:image/png;" + "x=y;" * 500 + "base64,AAAA",
    "data-nested": "data:image/png;base64,data:image/png;base64,AAAA",
    "no-base64": "!!!not base64!!!",
    "url-safe-base64": "-_-_",
    "no-padding": "iVBORw0KGg",
    "much-padding": "AAAA========",
    "after-padding": "AA==AAAA",
    "not-ascii": "\u0627\u0644\u0633",
    "null": "AAAA\0",
    "blank": "   ",
}
# File names that a graph or a list of images may not use.
WRONG_NAMES = [
    *("../a.png", "../../../../etc/passwd", "/etc/passwd", "a/../../b.png", "a/b/c.png"),
    *("..\\a.png", "C:\\a.png", "\\\\host\\share\\a.png", ".hidden", ".", "..", "", " a.png"),
    *("a\0.png", "a.png\n", "a.png;rm -rf", "$(id).png", "`id`.png", "a|b.png", "~/a.png"),
    *("file:///etc/passwd", "https://127.0.0.1/a.png", "%2e%2e%2fa.png", "x" * 201 + ".png"),
]

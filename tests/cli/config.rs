//! A server of several exports by a configuration file, and what is refused in one.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::{Place, SIZE, Serving};

/// Three volumes by one file: two at the common socket, one at a socket of its own.
const THREE: &str = r#"
listen = [{ unix = "common.sock" }]

[[export]]
name = "one"
disk = "one.img"
key-file = "vm.key"

[[export]]
name = "two"
disk = "two.img"
key-file = "vm.key"
read-only = true

[[export]]
name = "own"
disk = "disk.img"
key-file = "vm.key"
sockets = ["own.sock"]
"#;

fn place() -> Place {
    let place = Place::with_volume();
    for name in ["one.img", "two.img"] {
        std::fs::copy(place.path("disk.img"), place.path(name)).unwrap();
    }
    place
}

fn serve(config: &str) -> (Place, Serving) {
    let place = place();
    place.file("veil.toml", config.as_bytes());
    let serving = place.serve("--config veil.toml");
    (place, serving)
}

/// Whether NBD_OPT_GO of `name` succeeds at a socket.
fn goes(socket: &Path, name: &str) -> bool {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    let len = u32::try_from(name.len()).unwrap();
    let mut bytes = b"\0\0\0\x03IHAVEOPT\0\0\0\x07".to_vec();
    bytes.extend((len + 6).to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend([0, 0]);
    stream.write_all(&bytes).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    reply[12..16] == [0, 0, 0, 3]
}

/// The names that a socket lists; `None` where it refuses to.
fn listed(socket: &Path) -> Option<Vec<String>> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x03\0\0\0\0").unwrap();
    let mut names = Vec::new();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; number(16) as usize];
        stream.read_exact(&mut data).unwrap();
        match number(12) {
            2 => {
                let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
                names.push(String::from_utf8_lossy(&data[4..4 + len]).into_owned());
            }
            1 => return Some(names),
            _ => return None,
        }
    }
}

#[test]
fn every_export_is_where_the_file_says() {
    let (place, serving) = serve(THREE);
    let exports = serving.ready["exports"].as_array().unwrap();
    let of = |n: usize, key: &str| exports[n][key].clone();
    assert_eq!(
        (of(0, "export"), of(1, "export"), of(2, "export")),
        ("one".into(), "two".into(), "own".into())
    );
    assert_eq!((of(0, "read_only"), of(1, "read_only")), (false.into(), true.into()));
    assert_eq!(of(2, "size"), SIZE);
    let own = place.path("own.sock");
    assert_eq!(of(2, "uris"), serde_json::json!([format!("nbd+unix:///own?socket={}", own.display())]));
    let common = place.path("common.sock");
    assert!(goes(&common, "one") && goes(&common, "two") && goes(&own, "own"));
    assert!(!goes(&common, "own") && !goes(&own, "one") && !goes(&common, ""));
}

#[test]
fn names_are_told_only_where_the_file_says_so() {
    let (place, _serving) = serve(THREE);
    assert_eq!(listed(&place.path("common.sock")), None);
    let (place, _serving) = serve(&format!("list = true\n{THREE}"));
    assert_eq!(listed(&place.path("common.sock")).unwrap(), ["one", "two"]);
    assert_eq!(listed(&place.path("own.sock")).unwrap(), ["own"]);
}

#[test]
fn users_that_are_not_named_find_no_export() {
    let own = rustix::process::geteuid().as_raw();
    let rules = |rule: &str| {
        THREE.replacen("disk = \"one.img\"", &format!("disk = \"one.img\"\nclients = [\"{rule}\"]"), 1)
    };
    let (place, _serving) = serve(&rules(&format!("user:{own}")));
    assert!(goes(&place.path("common.sock"), "one"));
    let (place, _serving) = serve(&rules(&format!("user:{}", own + 4711)));
    assert!(!goes(&place.path("common.sock"), "one") && goes(&place.path("common.sock"), "two"));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let place = place();
    let whole = |cause: &str| format!("the configuration veil.toml is not right: {cause}");
    for (change, by, cause) in [
        ("read-only = true", "readonly = true", "line 13: unknown field `readonly`"),
        ("read-only = true", "passphrase = \"secret words\"", "line 13: unknown field `passphrase`"),
        ("name = \"two\"", "name = \"one\"", "there are 2 exports named 'one'"),
        (
            "read-only = true",
            "key-credential = \"c\"",
            "export 'two' has both a key-file and a key-credential",
        ),
        ("read-only = true", "clients = [\"vm1\"]", "'vm1' does not name a client"),
        (
            "read-only = true",
            "clients = [\"dns:vm1\"]",
            "no client can match what export 'two' asks of its clients",
        ),
        (
            "listen = [{ unix = \"common.sock\" }]",
            "listen = [{ tcp = \"0.0.0.0:1\" }]",
            "0.0.0.0:1 can be reached from other machines, and there is no TLS",
        ),
        ("listen = [", "listen = ", "line 2:"),
    ] {
        place.file("veil.toml", THREE.replacen(change, by, 1).as_bytes());
        let outcome = place.run("serve --config veil.toml");
        let error = outcome.stderr.lines().next().unwrap_or_default();
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(error.starts_with(&format!("hostveil: {}", whole(cause))), "{error}");
        assert!(!outcome.stderr.contains("secret words"), "{outcome:?}");
    }
    place.file("veil.toml", b"list = true\n");
    place.run("serve --config veil.toml").fails(1, &whole("there is no export in it"));
    place.file("veil.toml", THREE.replacen("listen =", "#", 1).as_bytes());
    place.run("serve --config veil.toml").fails(1, "there is no socket where export 'one' could be reached");
    place
        .run("serve --config nowhere.toml")
        .fails(4, "cannot read the configuration nowhere.toml: No such file or directory (os error 2)");
    assert!(!place.path("common.sock").exists() && !place.path("own.sock").exists());
}

#[test]
fn a_file_and_arguments_that_say_the_same_do_not_mix() {
    let place = place();
    place.file("veil.toml", THREE.as_bytes());
    for args in ["disk.img", "--key-file vm.key", "--read-only", "--socket s", "--name x", "--list"] {
        let outcome = place.run(&format!("serve --config veil.toml {args}"));
        assert_eq!(outcome.code, 1, "{args}");
        assert!(outcome.stderr.contains("cannot be used with"), "{outcome:?}");
    }
}

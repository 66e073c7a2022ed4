//! TLS with the clients that people have, all of which speak GnuTLS: qemu-img, nbdinfo, nbdcopy. The
//! certificates are made as QEMU's and libvirt's documentation says, by certtool.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::harness::{MIB, Run, Scratch, Server, Volume, assert_same, peer};

/// An authority, a server's directory, and clients' directories below one place.
struct Pki {
    place: Scratch,
}

impl Pki {
    fn new() -> Self {
        let pki = Self { place: Scratch::new() };
        pki.authority("ca");
        pki.authority("stranger");
        pki.holder("server", "ca", "cn = localhost\nip_address = 127.0.0.1\ntls_www_server\n", "365");
        pki
    }

    fn authority(&self, name: &str) {
        let template = self.place.file("template", format!("cn = {name}\nca\ncert_signing_key\n").as_bytes());
        let key = self.key(&format!("{name}-key.pem"));
        let certificate = self.place.join(&format!("{name}-cert.pem"));
        peer("certtool")
            .args(["--generate-self-signed", "--load-privkey"])
            .arg(key)
            .arg("--template")
            .arg(template)
            .arg("--outfile")
            .arg(certificate)
            .run();
    }

    fn key(&self, name: &str) -> PathBuf {
        let path = self.place.join(name);
        peer("certtool")
            .args(["--generate-privkey", "--key-type", "rsa", "--bits", "2048", "--outfile"])
            .arg(&path)
            .run();
        path
    }

    /// A directory with a certificate and its key, `role` being what its template says of it beyond the
    /// usual; the directory trusts our authority.
    fn holder(&self, name: &str, authority: &str, role: &str, days: &str) -> PathBuf {
        let directory = self.place.join(name);
        std::fs::create_dir(&directory).unwrap();
        let side = if name == "server" { "server" } else { "client" };
        let key = self.key(&format!("{name}/{side}-key.pem"));
        let template = format!(
            "organization = \"Example, Ltd\"\n{role}signing_key\nencryption_key\nexpiration_days = {days}\n"
        );
        let template = self.place.file("template", template.as_bytes());
        peer("certtool")
            .args(["--generate-certificate", "--load-ca-certificate"])
            .arg(self.place.join(&format!("{authority}-cert.pem")))
            .arg("--load-ca-privkey")
            .arg(self.place.join(&format!("{authority}-key.pem")))
            .arg("--load-privkey")
            .arg(key)
            .arg("--template")
            .arg(template)
            .arg("--outfile")
            .arg(directory.join(format!("{side}-cert.pem")))
            .run();
        std::fs::copy(self.place.join("ca-cert.pem"), directory.join("ca-cert.pem")).unwrap();
        directory
    }

    fn client(&self, name: &str, authority: &str, days: &str) -> PathBuf {
        self.holder(name, authority, &format!("cn = {name}\ntls_www_client\n"), days)
    }

    fn serve(&self, volume: &Volume, options: &[&str]) -> Server {
        let server = volume.serve().on_tcp().arg("--name").arg("disk");
        let server = server.arg("--tls-certificates").arg(self.place.join("server"));
        options.iter().fold(server, |server, option| server.arg(*option)).start()
    }
}

fn port(server: &Server) -> &str {
    server.uri().strip_prefix("nbds://127.0.0.1:").unwrap().strip_suffix("/disk").unwrap()
}

fn libnbd_uri(port: &str, certificates: &Path) -> String {
    format!("nbds://127.0.0.1:{port}/disk?tls-certificates={}", certificates.display())
}

/// The command by which QEMU looks at the export.
fn qemu_info(port: &str, certificates: &Path) -> std::process::Command {
    let mut command = peer("qemu-img");
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", certificates.display());
    let options = format!("driver=nbd,host=127.0.0.1,port={port},export=disk,tls-creds=t");
    command.args(["info", "--object", &credentials, "--image-opts", &options]);
    command
}

#[test]
fn gnutls_clients_connect_with_the_right_certificate_and_with_no_other() {
    let pki = Pki::new();
    let volume = Volume::format(pki.place.path(), 16 * MIB, &[]);
    let server = pki.serve(&volume, &[]);
    let right = pki.client("right", "ca", "365");
    assert!(qemu_info(port(&server), &right).run().contains("virtual size: 16 MiB"));
    let info = peer("nbdinfo").arg(libnbd_uri(port(&server), &right)).run();
    assert!(info.contains("with TLS"), "{info}");

    let wrong = pki.client("wrong", "stranger", "365");
    let expired = pki.holder(
        "expired",
        "ca",
        "cn = expired\ntls_www_client\nactivation_date = \"2020-01-01 00:00:00\"\n\
         expiration_date = \"2021-01-01 00:00:00\"\n",
        "1",
    );
    let missing = pki.place.join("missing");
    std::fs::create_dir(&missing).unwrap();
    std::fs::copy(pki.place.join("ca-cert.pem"), missing.join("ca-cert.pem")).unwrap();
    for (what, certificates) in [("wrong", &wrong), ("expired", &expired), ("missing", &missing)] {
        qemu_info(port(&server), certificates).fail();
        let failure = peer("nbdinfo").arg(libnbd_uri(port(&server), certificates)).fail();
        assert!(!failure.text.contains("export-size"), "{what}: {failure:?}");
    }
    // In clear there is nothing at all.
    let plain = format!("nbd://127.0.0.1:{}/disk", port(&server));
    peer("nbdinfo").arg(&plain).fail();
    peer("qemu-img").args(["info", "-f", "raw", &plain]).fail();
    assert!(qemu_info(port(&server), &right).run().contains("16 MiB"), "the server lives on");
    assert!(server.log().contains("the client's certificate does not count"), "{}", server.log());
    server.stop();
}

#[test]
fn nbdcopy_there_and_back_by_tls() {
    let pki = Pki::new();
    let volume = Volume::format(pki.place.path(), 64 * MIB, &[]);
    let data = pki.place.noise("data", 64 * MIB);
    let server = pki.serve(&volume, &[]);
    let uri = libnbd_uri(port(&server), &pki.client("right", "ca", "365"));
    peer("nbdcopy").arg("--flush").arg(&data).arg(&uri).run();
    let back = pki.place.join("back");
    peer("nbdcopy").arg(&uri).arg(&back).run();
    assert_same(&data, &back);
    server.stop();
}

/// The name that a rule matches is the one that `qemu-nbd --tls-authz` matches.
#[test]
fn a_subject_is_written_as_qemu_writes_it() {
    let pki = Pki::new();
    let role = "country = GB\nstate = London\nlocality = \"London, East\"\nunit = \"#1\"\ncn = \"vm 1 + 2\"\nuid = \" u\"\ntls_www_client\n";
    let vm = pki.holder("vm", "ca", role, "365");
    let subject = r"C=GB,ST=London,L=London\, East,O=Example\, Ltd,OU=\#1,CN=vm 1 \+ 2,UID=\ u";

    // QEMU as the server.
    let image = pki.place.noise("raw", MIB);
    let socket = pki.place.join("qemu.sock");
    let credentials = format!(
        "tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir={}",
        pki.place.join("server").display()
    );
    let rule = format!("authz-simple,id=a,identity={}", subject.replace(',', ",,"));
    let pid = pki.place.join("pid");
    peer("qemu-nbd")
        .args(["--fork", "--object", &credentials, "--object", &rule, "--tls-creds", "t", "--tls-authz", "a"])
        .args(["-f", "raw", "-x", "disk", "-k"])
        .arg(&socket)
        .arg("--pid-file")
        .arg(&pid)
        .arg(&image)
        .run();
    let unix = |socket: &Path| {
        format!(
            "nbds+unix:///disk?socket={}&tls-certificates={}&tls-hostname=localhost",
            socket.display(),
            vm.display()
        )
    };
    peer("nbdinfo").arg(unix(&socket)).run();

    // hostveil as the server, with the same words, and with nearly the same.
    let volume = Volume::format(pki.place.path(), MIB, &[]);
    let own = format!("subject:{subject}");
    let server = pki.serve(&volume, &["--client", &own]);
    qemu_info(port(&server), &vm).run();
    server.stop();
    let server = pki.serve(&volume, &["--client", &own[..own.len() - 1]]);
    qemu_info(port(&server), &vm).fail();
    server.stop();
}

/// threats.md of anybody who can capture the wire: a capture of a session holds none of what was
/// written, and none of the export's name.
#[test]
fn a_capture_of_the_session_shows_no_plaintext() {
    let pki = Pki::new();
    let volume = Volume::format(pki.place.path(), 4 * MIB, &[]);
    let server = pki.serve(&volume, &[]);
    let tap = Tap::start(port(&server).parse().unwrap());
    let uri = libnbd_uri(&tap.port.to_string(), &pki.client("right", "ca", "365"));
    let marker = b"Dear diary, the wire must not know this.";
    let text: Vec<u8> = marker.iter().copied().cycle().take(4 << 20).collect();
    let data = pki.place.file("data", &text);
    peer("nbdcopy").arg("--flush").arg(&data).arg(&uri).run();
    let back = pki.place.join("back");
    peer("nbdcopy").arg(&uri).arg(&back).run();
    assert_same(&data, &back);
    let captured = tap.captured.lock().unwrap();
    assert!(captured.len() > 8 << 20, "the capture has both directions: {}", captured.len());
    assert!(captured.windows(8).any(|window| window == b"NBDMAGIC"), "the capture begins with the greeting");
    assert!(!captured.windows(16).any(|window| window == &marker[..16]));
    drop(captured);
    server.stop();
}

/// A relay that keeps everything that passes.
struct Tap {
    port: u16,
    captured: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tap = Self { port: listener.local_addr().unwrap().port(), captured: Arc::default() };
        let captured = Arc::clone(&tap.captured);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
                for (from, into) in [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))] {
                    let (from, into, captured) = (from.unwrap(), into.unwrap(), Arc::clone(&captured));
                    std::thread::spawn(move || relay(from, into, &captured));
                }
            }
        });
        tap
    }
}

fn relay(mut from: TcpStream, mut into: TcpStream, captured: &Mutex<Vec<u8>>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        captured.lock().unwrap().extend(&buffer[..count]);
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(std::net::Shutdown::Write);
}

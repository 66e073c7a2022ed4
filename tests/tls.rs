//! TLS and access, over a real socket with a client of our own: certificates that count and that do not,
//! exports bound to clients, and plaintext where TLS is required. Real peers are in tests/peers/tls.rs.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hostveil::block::{
    BlockDevice, Buffer, BufferPool, Capabilities, Discard, Disk, Durability, Extent, Geometry, Range,
    Zeroing,
};
use hostveil::error::Result;
use hostveil::nbd::Export;
use hostveil::net::{Address, Listener, TlsConfig};
use hostveil::serve::{Access, Front, Offer, Options, Server, Service, Stopper};
use hostveil::units::{BlockSize, ByteCount};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

const SIZE: usize = 32 << 20;

/// A disk in memory.
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn place(at: Range) -> std::ops::Range<usize> {
        let start = usize::try_from(at.offset().0).unwrap();
        start..start + at.len().to_usize().unwrap()
    }
}

impl BlockDevice for Memory {
    fn geometry(&self) -> Geometry {
        Geometry { size: ByteCount(SIZE as u64), block: BlockSize::BYTE, preferred: BlockSize::B4096 }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: Discard::Undefined, fast_zeroes: false }
    }
    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.0.lock().unwrap()[Self::place(at)]);
        Ok(())
    }
    fn write(&self, at: Range, data: Buffer, _: Durability) -> Result<()> {
        self.0.lock().unwrap()[Self::place(at)].copy_from_slice(&data);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _: Range, _: Durability) -> Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, at: Range, _: Zeroing, _: Durability) -> Result<()> {
        self.0.lock().unwrap()[Self::place(at)].fill(0);
        Ok(())
    }
    fn extents(&self, at: Range, _: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { len: at.len(), allocated: true, reads_zero: false }])
    }
}

/// A certificate authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key.
#[derive(Clone)]
struct Holder {
    certificate: CertificateDer<'static>,
    key: Arc<Vec<u8>>,
    pem: (String, String),
}

/// What a certificate is for, and until when.
#[derive(Clone, Copy)]
struct Wanted {
    name: &'static str,
    server: bool,
    years: (i32, i32),
    serial: u64,
}

const VM1: Wanted = Wanted { name: "vm1", server: false, years: (2020, 2090), serial: 7 };

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn sign(&self, wanted: Wanted) -> Holder {
        let names = vec![format!("{}.example.org", wanted.name), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "Example, Ltd");
        params.distinguished_name.push(DnType::CommonName, wanted.name);
        params.extended_key_usages = vec![match wanted.server {
            true => ExtendedKeyUsagePurpose::ServerAuth,
            false => ExtendedKeyUsagePurpose::ClientAuth,
        }];
        params.not_before = date_time_ymd(wanted.years.0, 1, 1);
        params.not_after = date_time_ymd(wanted.years.1, 1, 1);
        params.serial_number = Some(SerialNumber::from(wanted.serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Holder {
            pem: (certificate.pem(), key.serialize_pem()),
            certificate: certificate.der().clone(),
            key: Arc::new(key.serialize_der()),
        }
    }

    fn revoke(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A directory as a server reads it.
    fn directory(&self) -> tempfile::TempDir {
        let server = self.sign(Wanted { name: "server", server: true, ..VM1 });
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        file("ca-cert.pem", &self.pem);
        file("server-cert.pem", &server.pem.0);
        file("server-key.pem", &server.pem.1);
        directory
    }
}

/// A server of several exports over TCP; stopped and joined on drop.
struct Running {
    address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Running {
    fn start(certificates: &Path, exports: &[(&str, &[&str])]) -> Self {
        let pool = BufferPool::new(1 << 20);
        let service = |(name, clients): &(&str, &[&str])| {
            let disk = Disk::new(Memory(Mutex::new(vec![0; SIZE])));
            let export = Export::new(name, "", disk.geometry(), disk.capabilities()).unwrap();
            let access = Access::new(clients.iter().map(|client| client.parse().unwrap()).collect());
            Service { export, disk, access }
        };
        let tls = Some(TlsConfig::load(certificates).unwrap());
        let options = Options { listing: true, tls, ..Options::default() };
        let server = Server::new(exports.iter().map(service).collect(), pool, options).unwrap();
        let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap()), None).unwrap();
        let Address::Tcp(address) = *listener.address() else { panic!("not TCP") };
        let stopper = server.stopper();
        let front = Front { listener, offer: Offer::all() };
        let thread = Some(std::thread::spawn(move || server.run(vec![front])));
        Self { address, stopper, thread }
    }

    fn plain(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        stream
    }

    /// Goes over to TLS as a client that trusts `authority` and shows `holder`.
    fn secure(&self, authority: &Authority, holder: Option<&Holder>) -> io::Result<Client> {
        self.secure_by(authority, holder, &[&TLS13, &TLS12])
    }

    fn secure_by(
        &self,
        authority: &Authority,
        holder: Option<&Holder>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> io::Result<Client> {
        let mut stream = self.plain();
        stream.write_all(&option(STARTTLS, b"")).unwrap();
        assert_eq!(reply(&mut stream)?, (STARTTLS, ACK, vec![]));
        let config = client_config(authority, holder, versions);
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut client = StreamOwned::new(connection, stream);
        // With TLS 1.3 a client learns of its refusal only with the first answer.
        client.write_all(&option(LIST, b""))?;
        let names = listed(&mut client)?;
        Ok(Client { stream: client, names })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        self.stopper.stop();
        let _ = self.thread.take().unwrap().join();
    }
}

fn client_config(
    authority: &Authority,
    holder: Option<&Holder>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    use rustls::pki_types::pem::PemObject;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    match holder {
        None => builder.with_no_client_auth(),
        Some(holder) => {
            let key = PrivateKeyDer::try_from(holder.key.as_slice().to_vec()).unwrap();
            builder.with_client_auth_cert(vec![holder.certificate.clone()], key).unwrap()
        }
    }
}

/// A client behind TLS, and the names of the exports that it is told.
struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    names: Vec<String>,
}

const EXPORT_NAME: u32 = 1;
const LIST: u32 = 3;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED_REPLY: u32 = 8;
const ACK: u32 = 1;
const SERVER: u32 = 2;
const ERR_INVALID: u32 = (1 << 31) + 3;
const ERR_TLS_REQD: u32 = (1 << 31) + 5;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// An option's reply: option, type, data.
fn reply(from: &mut impl Read) -> io::Result<(u32, u32, Vec<u8>)> {
    let mut header = [0; 20];
    from.read_exact(&mut header)?;
    assert_eq!(header[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let mut data = vec![0; number(16) as usize];
    from.read_exact(&mut data)?;
    Ok((number(8), number(12), data))
}

fn listed(from: &mut impl Read) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    loop {
        match reply(from)? {
            (LIST, SERVER, data) => {
                let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
                names.push(String::from_utf8(data[4..4 + len].to_vec()).unwrap());
            }
            (LIST, ACK, _) => return Ok(names),
            other => panic!("{other:?}"),
        }
    }
}

/// What GO is answered in the end.
fn go(client: &mut Client, name: &str) -> u32 {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend([0, 0]);
    client.stream.write_all(&option(GO, &data)).unwrap();
    loop {
        match reply(&mut client.stream).unwrap() {
            (GO, 3, _) => {}
            (GO, kind, _) => return kind,
            other => panic!("{other:?}"),
        }
    }
}

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

#[test]
fn a_certificate_that_counts_opens_the_disk_by_either_version() {
    let authority = Authority::new("CA");
    let directory = authority.directory();
    let server = Running::start(directory.path(), &[("disk", &[])]);
    let vm1 = authority.sign(VM1);
    for version in [&TLS12, &TLS13] {
        let mut client = server.secure_by(&authority, Some(&vm1), &[version]).unwrap();
        assert_eq!(client.stream.conn.protocol_version(), Some(version.version));
        assert_eq!(go(&mut client, "disk"), ACK);
        let data: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[n as usize % 3]).collect();
        client.stream.write_all(&request(1, 1, 5000, 1 << 20)).unwrap();
        client.stream.write_all(&data).unwrap();
        client.stream.write_all(&request(0, 2, 5000, 1 << 20)).unwrap();
        let mut back = vec![0; 16 + 16 + (1 << 20)];
        client.stream.read_exact(&mut back).unwrap();
        assert_eq!(back[32..], data);
    }
}

#[test]
fn certificates_that_do_not_count_get_nothing() {
    let (authority, stranger) = (Authority::new("CA"), Authority::new("CA"));
    let directory = authority.directory();
    let server = Running::start(directory.path(), &[("disk", &[])]);
    let refused: [(&str, Option<Holder>); 5] = [
        ("none", None),
        ("another authority's", Some(stranger.sign(VM1))),
        ("expired", Some(authority.sign(Wanted { years: (2020, 2021), ..VM1 }))),
        ("not valid yet", Some(authority.sign(Wanted { years: (2089, 2090), ..VM1 }))),
        ("a server's", Some(authority.sign(Wanted { server: true, ..VM1 }))),
    ];
    for (what, holder) in refused {
        for version in [&TLS12, &TLS13] {
            let outcome = server.secure_by(&authority, holder.as_ref(), &[version]);
            assert!(outcome.is_err(), "{what} was accepted");
        }
    }
    assert!(server.secure(&authority, Some(&authority.sign(VM1))).is_ok(), "the server lives on");
}

#[test]
fn a_revoked_certificate_does_not_count() {
    let authority = Authority::new("CA");
    let directory = authority.directory();
    std::fs::write(directory.path().join("ca-crl.pem"), authority.revoke(66)).unwrap();
    let server = Running::start(directory.path(), &[("disk", &[])]);
    assert!(server.secure(&authority, Some(&authority.sign(Wanted { serial: 66, ..VM1 }))).is_err());
    assert!(server.secure(&authority, Some(&authority.sign(Wanted { serial: 67, ..VM1 }))).is_ok());
}

#[test]
fn exports_are_for_the_clients_that_they_name_and_do_not_exist_for_others() {
    let authority = Authority::new("CA");
    let directory = authority.directory();
    let fingerprint = {
        use sha2::Digest;
        let holder = authority.sign(Wanted { name: "vm3", ..VM1 });
        let digest = sha2::Sha256::digest(&holder.certificate);
        (
            holder,
            digest.iter().flat_map(|b| format!("{b:02x}").into_bytes()).map(char::from).collect::<String>(),
        )
    };
    let by_fingerprint = format!("sha256:{}", fingerprint.1);
    let exports: [(&str, &[&str]); 5] = [
        ("for-all", &[]),
        ("by-subject", &[r"subject:CN=vm1,O=Example\, Ltd"]),
        ("by-name", &["dns:vm2.example.org", "dns:nobody.example.org"]),
        ("by-fingerprint", &[&by_fingerprint]),
        // Root's own process is nobody here: a user rule is no fall-back.
        ("by-user", &["user:0"]),
    ];
    let server = Running::start(directory.path(), &exports);
    let vm1 = authority.sign(VM1);
    let vm2 = authority.sign(Wanted { name: "vm2", ..VM1 });
    // A prefix of vm1's name, and a name that vm1's is a prefix of.
    let vm = authority.sign(Wanted { name: "vm", ..VM1 });
    let vm10 = authority.sign(Wanted { name: "vm10", ..VM1 });
    for (holder, own) in [
        (&vm1, Some("by-subject")),
        (&vm2, Some("by-name")),
        (&fingerprint.0, Some("by-fingerprint")),
        (&vm, None),
        (&vm10, None),
    ] {
        let mut client = server.secure(&authority, Some(holder)).unwrap();
        let visible: Vec<&str> = ["for-all"].into_iter().chain(own).collect();
        assert_eq!(client.names, visible);
        for (name, _) in exports {
            if !visible.contains(&name) {
                assert_eq!(go(&mut client, name), ERR_UNKNOWN, "{name}");
            }
        }
        assert_eq!(go(&mut client, visible[visible.len() - 1]), ACK);
    }
}

#[test]
fn without_tls_there_is_nothing_but_the_way_to_it() {
    let authority = Authority::new("CA");
    let directory = authority.directory();
    let server = Running::start(directory.path(), &[("disk", &[])]);
    let mut plain = server.plain();
    for kind in [LIST, GO, STRUCTURED_REPLY, 6, 9, 10, 11, 4711] {
        plain.write_all(&option(kind, b"")).unwrap();
        assert_eq!(reply(&mut plain).unwrap().1, ERR_TLS_REQD, "option {kind}");
    }
    plain.write_all(&option(STARTTLS, b"x")).unwrap();
    assert_eq!(reply(&mut plain).unwrap().1, ERR_INVALID);
    plain.write_all(&option(EXPORT_NAME, b"disk")).unwrap();
    assert_eq!(plain.read(&mut [0; 1]).unwrap(), 0, "EXPORT_NAME must disconnect");
}

/// CVE-2021-3716: what was sent in clear behind STARTTLS must never count as if it came by TLS.
#[test]
fn cve_2021_3716_plaintext_behind_starttls_is_not_taken_in() {
    let authority = Authority::new("CA");
    let directory = authority.directory();
    let server = Running::start(directory.path(), &[("disk", &[])]);
    let mut plain = server.plain();
    let injected = [option(STARTTLS, b""), option(STRUCTURED_REPLY, b"")].concat();
    plain.write_all(&injected).unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest);
    assert!(rest.len() <= 20, "at most STARTTLS itself is answered: {rest:?}");
    // Negotiated in clear before, it is forgotten: it has to be said again, and can be.
    let mut client = server.secure(&authority, Some(&authority.sign(VM1))).unwrap();
    client.stream.write_all(&option(STRUCTURED_REPLY, b"")).unwrap();
    assert_eq!(reply(&mut client.stream).unwrap().1, ACK);
    client.stream.write_all(&option(STARTTLS, b"")).unwrap();
    assert_eq!(reply(&mut client.stream).unwrap().1, ERR_INVALID, "a second STARTTLS");
}

/// Replies that nobody reads fill every buffer on the way; requests still arrive, and all replies later.
#[test]
fn many_large_replies_reach_a_client_that_reads_late() {
    let authority = Authority::new("CA");
    let directory = authority.directory();
    let server = Running::start(directory.path(), &[("disk", &[])]);
    let mut client = server.secure(&authority, Some(&authority.sign(VM1))).unwrap();
    assert_eq!(go(&mut client, "disk"), ACK);
    let requests: Vec<u8> = (0..40).flat_map(|n| request(0, n, n << 19, 1 << 20)).collect();
    client.stream.write_all(&requests).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut seen: Vec<u64> = Vec::new();
    for _ in 0..40 {
        let mut one = vec![0; 16 + (1 << 20)];
        client.stream.read_exact(&mut one).unwrap();
        assert_eq!(one[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        seen.push(u64::from_be_bytes(one[8..16].try_into().unwrap()));
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..40).collect::<Vec<_>>());
}

#[test]
fn noise_instead_of_tls_ends_that_connection_only() {
    let authority = Authority::new("CA");
    let directory = authority.directory();
    let server = Running::start(directory.path(), &[("disk", &[])]);
    for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 7000], &[0x16, 3, 1, 0xff, 0xff, 1], &[0x16]] {
        let mut plain = server.plain();
        plain.write_all(&option(STARTTLS, b"")).unwrap();
        assert_eq!(reply(&mut plain).unwrap().1, ACK);
        let _ = plain.write_all(noise);
        let _ = plain.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = plain.read_to_end(&mut rest);
        assert!(rest.len() < 100, "an alert at most");
    }
    assert!(server.secure(&authority, Some(&authority.sign(VM1))).is_ok());
}

#[test]
fn a_directory_that_is_not_whole_is_refused_by_the_files_name() {
    let authority = Authority::new("CA");
    let error = |change: &dyn Fn(&Path)| {
        let directory = authority.directory();
        change(directory.path());
        TlsConfig::load(directory.path()).err().unwrap().to_string()
    };
    for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        assert!(error(&|dir| std::fs::remove_file(dir.join(name)).unwrap()).contains(name));
        assert!(error(&|dir| std::fs::write(dir.join(name), "").unwrap()).contains(name));
        let broken = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n";
        assert!(!error(&|dir| std::fs::write(dir.join(name), broken).unwrap()).contains("nonsense"));
    }
    let other = Authority::new("other").sign(VM1).pem.1;
    assert!(error(&|dir| std::fs::write(dir.join("server-key.pem"), &other).unwrap()).contains("do not fit"));
}

//! [`TlsConfig`]: a directory of certificates, laid out as QEMU's `tls-creds-x509` and libvirt want it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

use crate::error::{Error, ErrorKind, Result};

use super::certificate;

/// The authorities whose certificates clients may show.
const CA_CERT: &str = "ca-cert.pem";
/// The authorities' lists of revoked certificates; may be absent.
const CA_CRL: &str = "ca-crl.pem";
/// The server's certificate, and those between it and its authority.
const SERVER_CERT: &str = "server-cert.pem";
/// The key of the server's certificate.
const SERVER_KEY: &str = "server-key.pem";
/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// What the server shows to clients, and what it demands of them. Cloning it is cheap.
#[derive(Clone)]
pub struct TlsConfig {
    pub(super) rustls: Arc<ServerConfig>,
}

impl TlsConfig {
    /// Reads `ca-cert.pem`, `server-cert.pem`, `server-key.pem` and, if it exists, `ca-crl.pem` from
    /// `directory`.
    ///
    /// # Errors
    /// Those of the files; [`ErrorKind::InvalidInput`], naming the file, when one does not hold what it
    /// should, or the key is not the certificate's.
    pub fn load(directory: &Path) -> Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain: Vec<CertificateDer<'static>> = items(&directory.join(SERVER_CERT))?;
        certificate::warn_unless_valid_now(&chain[0], &directory.join(SERVER_CERT));
        let key_path = directory.join(SERVER_KEY);
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?).map_err(|e| not_pem(&key_path, &e))?;
        warn_if_readable_by_others(&key_path);
        let verifier = client_verifier(directory, Arc::clone(&provider))?;
        let unfit = |e: rustls::Error| {
            invalid(format!("{SERVER_CERT} and {SERVER_KEY} in {} do not fit", directory.display()))
                .because(e)
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(unfit)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(unfit)?;
        // A resumed session would skip the verification of the client's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { rustls: Arc::new(config) })
    }
}

fn client_verifier(
    directory: &Path,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let path = directory.join(CA_CERT);
    let mut roots = RootCertStore::empty();
    for authority in items::<CertificateDer<'static>>(&path)? {
        certificate::warn_unless_valid_now(&authority, &path);
        roots.add(authority).map_err(|e| unusable(&path).because(e))?;
    }
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let crl = directory.join(CA_CRL);
    if crl.exists() {
        verifier = verifier
            .with_crls(items::<CertificateRevocationListDer<'static>>(&crl)?)
            .only_check_end_entity_revocation()
            .enforce_revocation_expiration();
    }
    verifier.build().map_err(|e| unusable(directory).because(e))
}

/// What a PEM file holds; at least one item.
fn items<T: PemObject>(path: &Path) -> Result<Vec<T>> {
    let bytes = read(path)?;
    let items: std::result::Result<Vec<T>, pem::Error> = T::pem_slice_iter(&bytes).collect();
    match items {
        Ok(items) if !items.is_empty() => Ok(items),
        Ok(_) => Err(not_pem(path, &pem::Error::NoItemsFound)),
        Err(error) => Err(not_pem(path, &error)),
    }
}

fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>> {
    let failed = |e| Error::io(format!("cannot read {}", path.display()), e);
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(invalid(format!("{} has {size} bytes, too many for a certificate", path.display())));
    }
    fs::read(path).map(zeroize::Zeroizing::new).map_err(failed)
}

fn warn_if_readable_by_others(path: &Path) {
    if fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
        tracing::warn!("{} is readable by everybody; chmod it to 600", path.display());
    }
}

/// The parser's own words are left out: they may quote what the file holds.
fn not_pem(path: &Path, error: &pem::Error) -> Error {
    let what = match error {
        pem::Error::NoItemsFound => "does not hold what it should in PEM form",
        _ => "is not a valid PEM file",
    };
    invalid(format!("{} {what}", path.display()))
}

fn unusable(path: &Path) -> Error {
    invalid(format!("the certificates in {} cannot be used", path.display()))
}

fn invalid(what: String) -> Error {
    let files: PathBuf = [CA_CERT, SERVER_CERT, SERVER_KEY].join(", ").into();
    Error::new(ErrorKind::InvalidInput, what).hint(format!(
        "a directory of certificates holds {}, as QEMU's tls-creds-x509 has them",
        files.display()
    ))
}

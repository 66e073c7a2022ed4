//! Configuration files: whatever text comes, it is refused with a sentence or gives what can be served.

use std::collections::BTreeSet;
use std::path::Path;

use hostveil::config::Config;
use hostveil::error::ErrorKind;
use hostveil::net::Address;

/// A text as the configuration of a server.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("/etc")) {
        Ok(config) => check(&config),
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Io), "{error:?}");
            assert!(error.to_string().len() < 4096 + text.len(), "a long error for a short text");
            assert_eq!(error.to_string().lines().count(), 1, "{error:?}");
        }
    }
}

/// What counts on a configuration that was taken.
fn check(config: &Config) {
    assert!(!config.exports.is_empty());
    let names: BTreeSet<_> = config.exports.iter().map(|export| &export.name).collect();
    assert_eq!(names.len(), config.exports.len(), "two exports of one name");
    for address in &config.listen {
        match address {
            Address::Tcp(address) => {
                assert!(address.ip().is_loopback() || config.tls_certificates.is_some(), "{address}");
            }
            Address::Unix(path) => assert!(path.is_absolute()),
        }
    }
    for export in &config.exports {
        assert!(export.place.disk.is_absolute() && export.sockets.iter().all(|socket| socket.is_absolute()));
    }
}

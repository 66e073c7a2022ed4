//! Reading a [`ClientCertificate`]'s names from the certificate that a client proved to hold.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::der_parser::asn1_rs::{Any, Oid, Tag};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

use crate::error::{Error, ErrorKind, Result};
use crate::net::identity::{ClientCertificate, hex};

impl ClientCertificate {
    /// Reads the names of a certificate that was verified.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it cannot be parsed.
    pub(super) fn parse(der: &[u8]) -> Result<Self> {
        let unreadable = || Error::new(ErrorKind::InvalidInput, "the client's certificate cannot be read");
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| unreadable())?;
        let names = certificate.subject_alternative_name().map_err(|_| unreadable())?;
        if !rest.is_empty() {
            return Err(unreadable());
        }
        let mut this = Self {
            subject: distinguished_name(certificate.subject()),
            dns: Vec::new(),
            email: Vec::new(),
            uri: Vec::new(),
            ip: Vec::new(),
            fingerprint: Sha256::digest(der).into(),
        };
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            match name {
                GeneralName::DNSName(name) => this.dns.push((*name).to_owned()),
                GeneralName::RFC822Name(name) => this.email.push((*name).to_owned()),
                GeneralName::URI(name) => this.uri.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => this.ip.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(this)
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// RFC 4514, section 2, but in the order of the certificate.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut text = String::new();
    for (n, rdn) in name.iter_rdn().enumerate() {
        for (m, attribute) in rdn.iter().enumerate() {
            text.push_str(match (n, m) {
                (0, 0) => "",
                (_, 0) => ",",
                _ => "+",
            });
            attribute_to(&mut text, attribute.attr_type(), attribute.attr_value());
        }
    }
    text
}

/// Writes `TYPE=value`. What is not text, or has no short name, is written in hexadecimal (RFC 4514,
/// section 2.4), so that no two values look alike.
fn attribute_to(text: &mut String, oid: &Oid<'_>, value: &Any<'_>) {
    let name = short_name(oid);
    let string = match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => std::str::from_utf8(value.data).ok(),
        _ => None,
    };
    match (name, string) {
        (Some(name), Some(string)) => {
            let _ = write!(text, "{name}=");
            escape_to(text, string);
        }
        (name, _) => {
            let name = name.map_or_else(|| oid.to_id_string(), str::to_owned);
            let _ = write!(text, "{name}=#{}", hex(value.data));
        }
    }
}

/// RFC 4514, section 3, and what GnuTLS adds to it.
fn short_name(oid: &Oid<'_>) -> Option<&'static str> {
    Some(match oid.to_id_string().as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "surName",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "givenName",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "EMAIL",
        _ => return None,
    })
}

fn escape_to(text: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (n, character) in value.chars().enumerate() {
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => text.extend(['\\', character]),
            '#' if n == 0 => text.push_str("\\#"),
            ' ' if n == 0 || n == last => text.push_str("\\ "),
            '\0' => text.push_str("\\00"),
            character => text.push(character),
        }
    }
}

/// Says in the log when one of the server's own certificates is of no use today.
pub(super) fn warn_unless_valid_now(der: &CertificateDer<'_>, path: &Path) {
    if let Ok((_, certificate)) = X509Certificate::from_der(der)
        && !certificate.validity().is_valid()
    {
        let (from, to) = (certificate.validity().not_before, certificate.validity().not_after);
        tracing::warn!("a certificate in {} is valid from {from} to {to}, and not now", path.display());
    }
}

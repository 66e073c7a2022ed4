//! [`Access`]: which clients an export is for.
//!
//! A rule names one thing that vouches for a client, and matches it whole or not at all. With any rule
//! an export is for those that match one, and for nobody else: there is no fall-back from one kind of
//! rule to another. Without rules it is for everybody who got so far: those that may open the Unix
//! socket, those whose certificate counts, and on loopback without TLS, everybody.

use std::net::IpAddr;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};
use crate::net::{ClientCertificate, Identity};

/// Whom an export is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    rules: Vec<ClientRule>,
}

/// One client, or several that share what vouches for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientRule {
    /// A certificate's subject, as QEMU's `tls-authz` writes it: `subject:CN=vm1,O=Example`.
    Subject(String),
    /// A certificate's DNS name: `dns:vm1.example.org`.
    Dns(String),
    /// A certificate's e-mail address: `email:vm1@example.org`.
    Email(String),
    /// A certificate's URI: `uri:spiffe://example.org/vm1`.
    Uri(String),
    /// A certificate's address: `ip:192.0.2.1`.
    Ip(IpAddr),
    /// A certificate itself: `sha256:` and 64 hexadecimal digits, colons between them or not.
    Fingerprint([u8; 32]),
    /// A user of this machine, by name or number, at a Unix socket: `user:libvirt-qemu`.
    User(u32),
    /// A process's effective group, by name or number, at a Unix socket: `group:kvm`.
    Group(u32),
}

impl Access {
    /// For the clients that match one of `rules`; for all, if there is none.
    pub fn new(rules: Vec<ClientRule>) -> Self {
        Self { rules }
    }

    /// Whether a client may have the export.
    pub fn admits(&self, client: &Identity) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|rule| rule.matches(client))
    }

    /// Whether no client can match without TLS, or none with it: then a rule is missing.
    pub fn can_admit(&self, tls: bool) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|rule| rule.wants_certificate() == tls)
    }
}

impl ClientRule {
    fn matches(&self, client: &Identity) -> bool {
        match client {
            Identity::Certificate(certificate) => self.matches_certificate(certificate),
            Identity::Process(process) => match self {
                Self::User(uid) => *uid == process.uid,
                Self::Group(gid) => *gid == process.gid,
                _ => false,
            },
            Identity::Unknown => false,
        }
    }

    fn matches_certificate(&self, certificate: &ClientCertificate) -> bool {
        match self {
            Self::Subject(subject) => *subject == certificate.subject,
            Self::Dns(name) => certificate.dns.contains(name),
            Self::Email(name) => certificate.email.contains(name),
            Self::Uri(name) => certificate.uri.contains(name),
            Self::Ip(address) => certificate.ip.contains(address),
            Self::Fingerprint(fingerprint) => *fingerprint == certificate.fingerprint,
            Self::User(_) | Self::Group(_) => false,
        }
    }

    fn wants_certificate(&self) -> bool {
        !matches!(self, Self::User(_) | Self::Group(_))
    }
}

impl FromStr for ClientRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |what: String| {
            Error::new(ErrorKind::InvalidInput, what).hint(
                "a client is subject:, dns:, email:, uri:, ip:, sha256:, user: or group: and a value, for example \
                 subject:CN=vm1,O=Example",
            )
        };
        let Some((kind, value)) = text.split_once(':').filter(|(_, value)| !value.is_empty()) else {
            return Err(invalid(format!("'{text}' does not name a client")));
        };
        let owned = || value.to_owned();
        Ok(match kind {
            "subject" => Self::Subject(owned()),
            "dns" => Self::Dns(owned()),
            "email" => Self::Email(owned()),
            "uri" => Self::Uri(owned()),
            "ip" => Self::Ip(value.parse().map_err(|_| invalid(format!("'{value}' is no IP address")))?),
            "sha256" => Self::Fingerprint(
                fingerprint(value).ok_or_else(|| invalid(format!("'{value}' is no SHA-256 fingerprint")))?,
            ),
            "user" => Self::User(user(value).ok_or_else(|| invalid(format!("there is no user {value}")))?),
            "group" => Self::Group(group(value)?),
            _ => return Err(invalid(format!("'{kind}' is no kind of client"))),
        })
    }
}

fn fingerprint(text: &str) -> Option<[u8; 32]> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn user(text: &str) -> Option<u32> {
    let number = text.parse().ok();
    number.or_else(|| nix::unistd::User::from_name(text).ok().flatten().map(|user| user.uid.as_raw()))
}

/// A group's number, by its name or the number itself.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when there is none of that name.
pub fn group(text: &str) -> Result<u32> {
    let named = || nix::unistd::Group::from_name(text).ok().flatten().map(|group| group.gid.as_raw());
    let number = text.parse().ok().or_else(named);
    number.ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("there is no group {text}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Credentials;

    fn certificate() -> ClientCertificate {
        ClientCertificate {
            subject: "CN=vm1,O=Example".into(),
            dns: vec!["vm1.example.org".into()],
            email: vec!["vm1@example.org".into()],
            uri: vec!["spiffe://example.org/vm1".into()],
            ip: vec!["10.0.0.1".parse().unwrap()],
            fingerprint: [0xab; 32],
        }
    }

    fn admits(rule: &str, client: &Identity) -> bool {
        Access::new(vec![rule.parse().unwrap()]).admits(client)
    }

    /// No rule is matched by a prefix, a suffix, another case or a wildcard, be it an address or a name.
    #[test]
    fn cve_2013_6410_names_and_addresses_match_whole_or_not_at_all() {
        let client = Identity::Certificate(Box::new(certificate()));
        let fingerprint = "ab".repeat(32);
        for (rule, others) in [
            (
                "subject:CN=vm1,O=Example",
                ["CN=vm1", "CN=vm1,O=Example2", "O=Example,CN=vm1", "CN=VM1,O=Example"],
            ),
            (
                "dns:vm1.example.org",
                ["vm1.example.or", "vm1.example.org.", "*.example.org", "vm11.example.org"],
            ),
            (
                "email:vm1@example.org",
                ["vm1@example.or", "example.org", "vm@example.org", "avm1@example.org"],
            ),
            (
                "uri:spiffe://example.org/vm1",
                ["spiffe://example.org/vm", "spiffe://example.org/vm10", "spiffe:", "/"],
            ),
            ("ip:10.0.0.1", ["10.0.0.10", "10.0.0.2", "::ffff:10.0.0.1", "110.0.0.1"]),
        ] {
            assert!(admits(rule, &client), "{rule}");
            let kind = rule.split_once(':').unwrap().0;
            for other in others {
                assert!(!admits(&format!("{kind}:{other}"), &client), "{other}");
            }
        }
        assert!(admits(&format!("sha256:{fingerprint}"), &client));
        assert!(!admits(&format!("sha256:{}ac", &fingerprint[2..]), &client));
    }

    #[test]
    fn one_kind_of_proof_does_not_stand_for_another() {
        let process = Identity::Process(Credentials { pid: 1, uid: 1000, gid: 100 });
        let certificate = Identity::Certificate(Box::new(certificate()));
        assert!(admits("user:1000", &process) && admits("group:100", &process));
        assert!(!admits("user:100", &process) && !admits("group:1000", &process));
        assert!(!admits("user:1000", &certificate) && !admits("user:0", &certificate));
        assert!(!admits("subject:CN=vm1,O=Example", &process));
        assert!(!admits("user:0", &Identity::Unknown) && Access::default().admits(&Identity::Unknown));
    }

    #[test]
    fn what_names_no_client_is_refused() {
        for text in
            ["", "vm1", "dns:", "sha256:abcd", "ip:vm1", "cn:vm1", "user:no such user", "group:no such group"]
        {
            assert_eq!(text.parse::<ClientRule>().unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
        assert_eq!("user:root".parse::<ClientRule>().unwrap(), ClientRule::User(0));
        let colons = ["AB"; 32].join(":");
        assert_eq!(
            format!("sha256:{colons}").parse::<ClientRule>().unwrap(),
            ClientRule::Fingerprint([0xab; 32])
        );
    }
}

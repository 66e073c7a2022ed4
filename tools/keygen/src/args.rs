//! The command line and its help text.

use std::path::PathBuf;

use clap::Parser;
use hostveil::keys::MAX_KEY_FILE;
use hostveil::units::ByteCount;

/// Fewer bytes than 256 bits would be the weakest part of a volume with a 256-bit cipher.
const FEWEST_BYTES: usize = 32;

const AFTER_HELP: &str = r#"Examples:
  hostveil-keygen -o vm.key                  make a key file, then:
  hostveil format --size 20G --key-file vm.key disk.img

  hostveil-keygen --recovery                 show a recovery key, to be printed or written down
  hostveil-keygen --recovery -o recovery.key make a file that holds a recovery key's text
  hostveil-keygen -o - | gpg -e > vm.key.gpg store a key in encrypted form only

A key file holds random bytes, a recovery key is the same in letters that can be typed: nine groups
of eight, the last of which is a checksum. Either is a passphrase of a LUKS2 key slot, for hostveil
and for cryptsetup alike.

With --json the answer is {"path": ..., "bytes": ...} for a new file, and {"recovery_key": ...}
where the key is shown.

Exit codes:
  0  done
  1  the arguments are wrong, or standard output is a terminal and the bytes are not text
  3  not enough memory
  4  the file cannot be created: it exists, its directory does not, or may not be written
  6  anything else that the system reported: the disk is full, writing or the random source failed"#;

/// Make a key file or a recovery key for a hostveil volume.
#[derive(Debug, Parser)]
#[command(name = "hostveil-keygen", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Args {
    /// The file to create, for its owner alone; it must not exist. '-' is standard output
    #[arg(short, long, value_name = "FILE", required_unless_present = "recovery")]
    pub(crate) output: Option<PathBuf>,

    /// How many random bytes the key file gets: 32 to 8M
    #[arg(long, value_name = "N", default_value = "64", value_parser = key_size, conflicts_with = "recovery")]
    pub(crate) bytes: usize,

    /// Make a recovery key; without -o, show it on standard output
    #[arg(long)]
    pub(crate) recovery: bool,

    /// Answer in JSON, and without advice
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where a new key goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// Into a new file.
    File(&'a std::path::Path),
    /// To standard output.
    Stdout,
}

impl Args {
    pub(crate) fn target(&self) -> Target<'_> {
        match &self.output {
            Some(path) if path.as_os_str() != "-" => Target::File(path),
            _ => Target::Stdout,
        }
    }
}

fn key_size(text: &str) -> Result<usize, String> {
    let size = text.parse::<ByteCount>()?.to_usize();
    size.filter(|size| (FEWEST_BYTES..=MAX_KEY_FILE).contains(size))
        .ok_or_else(|| format!("a key file has {FEWEST_BYTES} to {MAX_KEY_FILE} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn key_sizes_have_bounds() {
        assert_eq!(key_size("32"), Ok(32));
        assert_eq!(key_size("8M"), Ok(MAX_KEY_FILE));
        for bad in ["", "0", "31", "8388609", "1G", "-64", "sixty"] {
            assert!(key_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_dash_is_standard_output() {
        let target = |line: &[&str]| format!("{:?}", Args::try_parse_from(line).unwrap().target());
        assert_eq!(target(&["x", "-o", "-"]), "Stdout");
        assert_eq!(target(&["x", "--recovery"]), "Stdout");
        assert_eq!(target(&["x", "-o", "./-"]), "File(\"./-\")");
    }
}

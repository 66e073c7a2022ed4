//! Making a volume's inside: one superblock over empty trees (docs/sealed-format.md, "Format").

use std::sync::Arc;

use crate::anchor::{Anchor, Record, Session};
use crate::backing::Backing;
use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::engine::checkpoint::write_superblock;
use crate::sealed::header::fields::HeaderPin;
use crate::sealed::keys::keyring::Keyring;
use crate::sealed::keys::schedule::{KeySchedule, MountInputs};
use crate::sealed::layout::{BLOCK, Layout, Parameters};
use crate::sealed::pointer::BlkPtr;
use crate::sealed::store::Store;
use crate::sealed::superblock::fields::{Link, SLOTS, Superblock};

/// Makes an empty volume: every block reads as zeroes. Its header is written by the caller, afterwards,
/// so that a volume that is half made has none. Whatever else the store holds stays there and is never
/// looked at.
///
/// The anchor is only reserved: once the volume is whole, header and name included, the caller moves it to
/// generation 1 by the session that is returned. A volume that was finished without that opens all the
/// same; what was cut off before has left nothing that is in the next attempt's way.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for parameters outside their limits or a store that is too small.
pub fn format_volume(
    backing: &Arc<dyn Backing>,
    keys: KeySchedule,
    header: HeaderPin,
    parameters: Parameters,
    anchor: Option<Arc<dyn Anchor>>,
    entropy: &dyn Entropy,
) -> Result<Option<Session>> {
    let layout = Layout::new(parameters)?;
    let store = Arc::new(Store::new(Arc::clone(backing)));
    if store.len()? < layout.store_size() {
        let what = format!("the volume needs {} and the store has {}", layout.store_size(), store.len()?);
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let uuid = keys.volume().uuid;
    // An epoch that nothing is sealed in: the first mount begins the next.
    let salt = keys.draw_salt(&MountInputs::default(), entropy)?.bytes();
    let superblock = Superblock {
        uuid: *uuid.as_bytes(),
        generation: 1,
        header,
        parameters,
        map_root: BlkPtr::HOLE,
        bitmap_root: BlkPtr::HOLE,
        cut: Link::default(),
        fence: Link::default(),
        epoch: 0,
        salt,
    };
    let keyring = Keyring::found(keys, Arc::clone(&store), layout, 0, salt)?;
    for slot in SLOTS {
        store.write(slot, &[0; BLOCK])?;
    }
    store.sync()?;
    write_superblock(&store, &superblock, keyring.mac())?;
    store.sync()?;
    let reserve = |anchor| {
        let reservation = Record { uuid, generation: 0, sequence: 0, tag: [0; 16] };
        Session::create(anchor, keyring.schedule().anchor_mac()?, reservation)
    };
    anchor.map(reserve).transpose()
}

//! Carrying a [`Config`] out: volumes found, sockets bound, keys asked for, volumes unlocked, and served
//! until the end.

use std::path::Path;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::block::BufferPool;
use crate::config::{Config, ExportConfig};
use crate::crypto::CostLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::Export;
use crate::net::{Address, Listener, Notifier, TlsConfig, inherited_listeners};
use crate::serve::sandbox::{self, Confinement};
use crate::serve::{Access, Front, Limits, Offer, Options, Server, Service, Stopper};
use crate::units::ByteCount;
use crate::volume::{DiscardPolicy, Located, OpenOptions, Volume};

use super::attach::Attachment;
use super::prompt;

/// How this process serves, whatever it serves.
pub(super) struct Manner {
    /// Print JSON when ready.
    pub(super) json: bool,
    /// Enter the sandbox.
    pub(super) sandbox: bool,
}

/// Serves until told to stop.
pub(super) fn serve(config: &Config, manner: &Manner) -> Result<()> {
    config.check()?;
    let limits = limits(config);
    limits.check(config.tls_certificates.is_some())?;
    let located: Vec<Located> = config.exports.iter().map(|e| locate(config, e)).collect::<Result<_>>()?;
    let tls = config.tls_certificates.as_deref().map(TlsConfig::load).transpose()?;
    // Bound before a passphrase is asked for: a taken socket should not cost a key derivation.
    let fronts = fronts(config)?;
    let figures =
        config.metrics.as_ref().map(|address| Listener::bind(address, config.socket_group)).transpose()?;
    let pool = limits.pool();
    let mut volumes = unlock(config, located, &pool)?;
    let services = config.exports.iter().zip(&volumes).map(|(export, volume)| service(export, volume));
    let services: Vec<Service> = services.collect::<Result<_>>()?;
    let options = Options { listing: config.list, tls, limits };
    let manager = Notifier::connect();
    let signals = signals()?;
    // All that needs files, sockets or other programs' answers is done, and no thread has started.
    let sandbox = enter_sandbox(manner, config, &fronts, figures.as_ref());
    volumes.iter_mut().try_for_each(Volume::start_upkeep)?;
    let server = Server::new(services, pool, options)?;
    hear(signals, server.stopper())?;
    let metrics = figures.as_ref().map(|listener| listener.address().to_string());
    figures.map_or(Ok(()), |listener| server.tell_figures(listener))?;
    tracing::info!(sandbox, metrics, exports = volumes.len(), "serving");
    announce(config, &fronts, &volumes, manner.json, &[("sandbox", Some(sandbox)), ("metrics", metrics)])?;
    manager.ready(&format!("serving {} export(s)", volumes.len()));
    let result = server.run(fronts);
    manager.stopping();
    drop(server);
    let closed = volumes.into_iter().map(Volume::close).fold(Ok(()), Result::and);
    result.and(closed)?;
    tracing::info!("everything is flushed; goodbye");
    Ok(())
}

fn locate(config: &Config, export: &ExportConfig) -> Result<Located> {
    let machine = CostLimits::of_this_machine();
    let asked = config.max_kdf_memory.map_or(u64::MAX, |size| size.0 / ByteCount::KIB);
    let options = OpenOptions {
        read_only: export.read_only,
        discard: export.discard,
        kind: export.kind,
        uuid: export.uuid,
        limits: CostLimits { memory_kib: machine.memory_kib.min(asked), ..machine },
        require_authenticated_header: export.require_authenticated_header,
        anchor: export.anchor.clone(),
        anchor_mode: export.anchor_mode,
        sealed_memory: export.sealed_memory,
    };
    Located::at(&export.place, &options)
}

fn limits(config: &Config) -> Limits {
    let defaults = Limits::default();
    Limits {
        connections: config.max_connections.unwrap_or(defaults.connections),
        memory: config.max_memory.map_or(defaults.memory, |size| size.to_usize().unwrap_or(usize::MAX)),
        poll: config.poll_max_us.map_or(defaults.poll, |micros| Duration::from_micros(u64::from(micros))),
        ..defaults
    }
}

/// Binds every socket: those that the service manager passed, or those for all exports without sockets
/// of their own; and those.
fn fronts(config: &Config) -> Result<Vec<Front>> {
    let places = 0..config.exports.len();
    let common: Vec<usize> = places.filter(|n| config.exports[*n].sockets.is_empty()).collect();
    let mut listeners = inherited_listeners()?;
    if listeners.is_empty() {
        let bind = |address| Listener::bind(address, config.socket_group);
        listeners = config.listen.iter().map(bind).collect::<Result<_>>()?;
    }
    if listeners.is_empty() && !common.is_empty() {
        let name = &config.exports[common[0]].name;
        let what = format!("there is no socket where export '{name}' could be reached");
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .hint("give the export sockets of its own, or the server a place to listen"));
    }
    let front = |listener| Front { listener, offer: Offer::only(common.clone()) };
    let mut fronts: Vec<Front> = listeners.into_iter().map(front).collect();
    for (place, export) in config.exports.iter().enumerate() {
        for path in &export.sockets {
            let listener = Listener::bind(&Address::Unix(path.clone()), config.socket_group)?;
            fronts.push(Front { listener, offer: Offer::only(vec![place]) });
        }
    }
    Ok(fronts)
}

fn unlock(config: &Config, located: Vec<Located>, pool: &BufferPool) -> Result<Vec<Volume>> {
    let unlock = |(export, located): (&ExportConfig, Located)| {
        let disk = export.place.disk.display();
        let passphrase = prompt::existing(export.key.as_ref(), &disk.to_string())?;
        located.unlock(&passphrase, pool.clone())
    };
    config.exports.iter().zip(located).map(unlock).collect()
}

fn service(config: &ExportConfig, volume: &Volume) -> Result<Service> {
    Ok(Service {
        export: export(&config.name, volume)?,
        disk: volume.disk.clone(),
        access: Access::new(config.clients.clone()),
    })
}

/// How a volume presents itself to NBD clients.
pub(super) fn export(name: &str, volume: &Volume) -> Result<Export> {
    let description = format!("hostveil {} volume {}", volume.kind, volume.uuid);
    Export::new(name, &description, volume.disk.geometry(), volume.disk.capabilities())
}

/// Enters the sandbox, unless that was declined. Says what holds, for the log and for scripts.
fn enter_sandbox(manner: &Manner, config: &Config, fronts: &[Front], figures: Option<&Listener>) -> String {
    if !manner.sandbox {
        return "off".to_owned();
    }
    let listeners = fronts.iter().map(|front| &front.listener).chain(figures);
    let files = listeners.filter_map(Listener::own_file);
    let sockets = files.map(|file| file.parent().unwrap_or(Path::new("/")).to_owned()).collect();
    // An anchor's record is replaced by another file.
    let writers = config.exports.iter().filter(|export| !export.read_only);
    let writable = writers.filter_map(|export| export.anchor.as_ref()?.directory()).collect();
    sandbox::enter(&Confinement { sockets, writable }).to_string()
}

/// Has SIGINT and SIGTERM stop the server. SIGHUP, which a closing terminal sends, stops it as well:
/// flushing beats being killed.
fn signals() -> Result<Signals> {
    Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|e| Error::io("cannot listen for signals", e))
}

fn hear(mut signals: Signals, stopper: Stopper) -> Result<()> {
    let thread = std::thread::Builder::new().name("signals".into());
    let spawned = thread.spawn(move || {
        for signal in &mut signals {
            tracing::info!(signal, "stopping; a second signal cuts connections at once");
            stopper.stop();
        }
    });
    spawned.map(drop).map_err(|e| Error::io("cannot start the signals' thread", e))
}

/// Says on stdout that the server is ready, and how to reach it: in JSON one line, with all there is to
/// say of an only export at the top as well, and with `more` about the server.
fn announce(
    config: &Config,
    fronts: &[Front],
    volumes: &[Volume],
    json: bool,
    more: &[(&str, Option<String>)],
) -> Result<()> {
    let mut exports = Vec::new();
    let mut text = String::new();
    for (place, (export, volume)) in config.exports.iter().zip(volumes).enumerate() {
        let addresses = fronts.iter().filter(|front| front.offer.includes(place));
        let attachments: Vec<_> = addresses
            .map(|front| Attachment {
                address: front.listener.address(),
                export: &export.name,
                read_only: export.read_only,
                discard: export.discard == DiscardPolicy::Unmap,
                tls: config.tls_certificates.is_some(),
            })
            .collect();
        if json {
            exports.push(ready(export, volume, &attachments));
        } else {
            text += &recipes(export, volume, &attachments);
        }
    }
    if json {
        let mut line = if exports.len() == 1 { exports[0].clone() } else { serde_json::Map::new() };
        line.insert("event".to_owned(), "ready".into());
        for (name, value) in more {
            line.insert((*name).to_owned(), value.clone().into());
        }
        line.insert("exports".to_owned(), exports.into());
        return super::print(&format!("{}\n", serde_json::Value::Object(line)));
    }
    super::print(&(text + "Stop with Ctrl-C.\n"))
}

fn ready(
    export: &ExportConfig,
    volume: &Volume,
    attachments: &[Attachment<'_>],
) -> serde_json::Map<String, serde_json::Value> {
    let first = attachments.first();
    let value = serde_json::json!({
        "uri": first.map(Attachment::uri),
        "uris": attachments.iter().map(Attachment::uri).collect::<Vec<_>>(),
        "export": export.name,
        "type": volume.kind.to_string(),
        "uuid": volume.uuid.to_string(),
        "size": volume.disk.geometry().size.0,
        "read_only": export.read_only,
        "qemu": first.map(Attachment::qemu),
        "libvirt": first.map(Attachment::libvirt),
    });
    match value {
        serde_json::Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

fn recipes(export: &ExportConfig, volume: &Volume, attachments: &[Attachment<'_>]) -> String {
    let uris: Vec<_> = attachments.iter().map(|a| format!("  {}\n", a.uri())).collect();
    let Some(first) = attachments.first() else { return String::new() };
    format!(
        "Serving {} ({} volume {}, {}) at\n\n{}\nQEMU:\n\n  {}\n\nlibvirt:\n\n{}\n\n",
        export.place.disk.display(),
        volume.kind,
        volume.uuid,
        volume.disk.geometry().size,
        uris.concat(),
        first.qemu(),
        first.libvirt().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n"),
    )
}

//! Embeds the watch page (the files of `web/watch`, the two players that `make web` installs and their licences) and the
//! console (`web/console`, and what draws its charts).
//!
//! Writes `assets.rs` to `OUT_DIR`, which holds two tables, each sorted by path:
//!
//! ```ignore
//! /// (path below /watch/assets/ or /console/, content type, body, the body gzipped, strong etag with its quotes)
//! pub type Asset = (&'static str, &'static str, &'static [u8], &'static [u8], &'static str);
//! pub static WATCH: &[Asset] = …;
//! pub static CONSOLE: &[Asset] = …;
//! ```
//!
//! The bodies are copied beside it, so that body, gzip form and etag always belong together.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

/// Our own files below `web/watch`; `watch.html` is also what `/watch/{stream}` answers.
const PAGE: &[&str] =
    &["icon.svg", "players.js", "probe.js", "session.js", "stats.js", "watch.css", "watch.html", "watch.js"];

/// Each player's run-time file below `web/node_modules`, and the name it is served by. hls.js is the full build (the
/// light one knows no audio renditions); of dash.js, the player without MSS, DRM and reporting.
const PLAYERS: &[(&str, &str)] = &[
    ("hls.js/dist/hls.min.js", "hls.min.js"),
    ("dashjs/dist/modern/umd/dash.mediaplayer.min.js", "dash.min.js"),
];

/// Our own files below `web/console`.
const CONSOLE: &[&str] = &[
    "api.js",
    "chart.js",
    "console.css",
    "console.js",
    "thumbnail.js",
    "curves.js",
    "dom.js",
    "index.html",
    "pages/audit.js",
    "pages/cache.js",
    "pages/fleet.js",
    "pages/policy.js",
    "pages/stream.js",
    "pages/streams.js",
    "pages/whatif.js",
    "policy.js",
    "roles.js",
    "series.js",
    "signin.js",
    "viewers.js",
    "whatif.js",
];

/// What draws the console's charts, below `web/node_modules`, and the names it is served by.
const CHARTS: &[(&str, &str)] =
    &[("uplot/dist/uPlot.iife.min.js", "uplot.js"), ("uplot/dist/uPlot.min.css", "uplot.css")];

/// Licence texts that open `licences.txt`; those of the packages under `web/node_modules` follow, by package name.
const NOTICES: &[&str] = &["web/notices.txt", "LICENSE-APACHE"];

fn main() {
    // cargo shows the message of `cargo::error` and nothing of this program's own noise.
    if let Err(message) = embed() {
        println!("cargo::error={message}");
    }
}

fn embed() -> Result<(), String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let modules = root.join("web/node_modules");
    println!("cargo::rerun-if-changed=build.rs");

    let web = root.join("web");
    let licences = licences(&root, &modules)?.into_bytes();
    let mut watch = files(&web.join("watch"), PAGE, &modules, PLAYERS)?;
    watch.insert("licences.txt".to_owned(), licences.clone());
    let mut console = files(&web.join("console"), CONSOLE, &modules, CHARTS)?;
    console.insert("icon.svg".to_owned(), watch["icon.svg"].clone());
    console.insert("licences.txt".to_owned(), licences);
    let source = [
        "/// (path below /watch/assets/ or /console/, content type, body, the body gzipped, strong etag with its quotes)\n\
         #[allow(unreachable_pub)]\n\
         pub type Asset = (&'static str, &'static str, &'static [u8], &'static [u8], &'static str);\n\n"
            .to_owned(),
        table(&out, "watch", &watch)?,
        table(&out, "console", &console)?,
    ];
    fs::write(out.join("assets.rs"), source.concat()).map_err(|error| format!("assets.rs: {error}"))
}

/// Our own files of a page, and those of packages under the names that they are served by.
fn files(
    folder: &Path,
    own: &[&str],
    modules: &Path,
    packaged: &[(&str, &str)],
) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let mut files = BTreeMap::new();
    for (file, name) in packaged {
        let path = modules.join(file);
        if !path.is_file() {
            // A path that does not exist counts as changed, so that the next build looks again.
            println!("cargo::rerun-if-changed={}", path.display());
            return Err(format!("web/node_modules/{file} is missing: run `make web`"));
        }
        files.insert((*name).to_owned(), read(&path)?);
    }
    for name in own {
        files.insert((*name).to_owned(), read(&folder.join(name))?);
    }
    Ok(files)
}

/// The licences of everything that is inside the two player files, as one text. Packages with the very same licence
/// file share one copy of it.
fn licences(root: &Path, modules: &Path) -> Result<String, String> {
    let mut text = String::new();
    for name in NOTICES {
        let _ = write!(text, "{}\n\n\n", prose(&root.join(name))?);
    }
    let mut bodies: Vec<(String, Vec<String>)> = Vec::new();
    for package in packages(modules)? {
        let title = package.strip_prefix(modules).unwrap_or(&package).display().to_string();
        for file in listing(&package)?.iter().filter(|path| is_licence(path)) {
            let body = prose(file)?;
            match bodies.iter_mut().find(|(other, _)| *other == body) {
                Some((_, titles)) => titles.push(title.clone()),
                None => bodies.push((body, vec![title.clone()])),
            }
        }
    }
    let rule = "=".repeat(72);
    for (body, titles) in bodies {
        let _ = write!(text, "{rule}\n{}\n{rule}\n\n{body}\n\n\n", titles.join("\n"));
    }
    Ok(text)
}

fn is_licence(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    path.is_file() && name.starts_with("licen") && !name.ends_with(".html")
}

fn prose(path: &Path) -> Result<String, String> {
    Ok(String::from_utf8_lossy(&read(path)?).replace("\r\n", "\n").trim_matches('\n').to_owned())
}

/// Every installed package, scoped ones included, in the order of their names.
fn packages(modules: &Path) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for path in listing(modules)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('@') {
            found.extend(listing(&path)?);
        } else if !name.starts_with('.') && path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

/// Writes bodies and gzip forms to a folder of `out` and returns the Rust source of the table that is called like it.
fn table(out: &Path, name: &str, assets: &BTreeMap<String, Vec<u8>>) -> Result<String, String> {
    let mut source = format!(
        "/// Sorted by path.\n#[allow(unreachable_pub)]\npub static {}: &[Asset] = &[\n",
        name.to_ascii_uppercase()
    );
    for (path, body) in assets {
        let kind = content_type(path)?;
        let zipped = gzip(body).map_err(|error| format!("{path}: {error}"))?;
        let (plain, zip) = (format!("{name}/{path}"), format!("{name}/{path}.gz"));
        for (file, bytes) in [(&plain, body), (&zip, &zipped)] {
            let file = out.join(file);
            let folder = file.parent().unwrap_or(out);
            fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
            fs::write(&file, bytes).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        let _ = writeln!(
            source,
            "    ({path:?}, {kind:?}, include_bytes!({plain:?}), include_bytes!({zip:?}), {:?}),",
            etag(body),
        );
    }
    source.push_str("];\n");
    Ok(source)
}

fn content_type(name: &str) -> Result<&'static str, String> {
    match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => Ok("text/html; charset=utf-8"),
        Some("css") => Ok("text/css; charset=utf-8"),
        Some("js") => Ok("text/javascript; charset=utf-8"),
        Some("svg") => Ok("image/svg+xml"),
        Some("txt") => Ok("text/plain; charset=utf-8"),
        _ => Err(format!("{name}: no content type is known for this name")),
    }
}

fn gzip(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(body)?;
    encoder.finish()
}

/// Distinguishes versions of our own files; nobody gains by a collision, so 64 bits and the length do.
fn etag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(body);
    format!("\"{:016x}-{:x}\"", hasher.finish(), body.len())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn listing(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(fail)? {
        paths.push(entry.map_err(fail)?.path());
    }
    paths.sort();
    Ok(paths)
}

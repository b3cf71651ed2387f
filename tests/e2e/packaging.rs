//! What is packaged: the systemd unit, what the Debian package is made of, and the fleet of `packaging/compose`, whose very
//! commands and configuration files run here as processes, each on a loopback address of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rooftop::config::Config;
use serde_json::Value;

use crate::kit::*;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The values of a key of the unit, in order.
fn unit(key: &str) -> Vec<String> {
    let text = read("packaging/systemd/rooftop.service");
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

/// Source and target of each file of the Debian package.
fn assets() -> Vec<(String, String)> {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let assets = manifest["package"]["metadata"]["deb"]["assets"].as_array().unwrap();
    let text = |asset: &toml::Value, index: usize| asset[index].as_str().unwrap().to_owned();
    assets.iter().map(|asset| (text(asset, 0), text(asset, 1))).collect()
}

/// Files that a node is configured with, as they are delivered.
fn configurations() -> Vec<PathBuf> {
    let folders = ["configs", "packaging", "packaging/compose"];
    let files = folders.iter().flat_map(|folder| fs::read_dir(Path::new(ROOT).join(folder)).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect()
}

#[test]
fn the_unit_is_sound_and_confined() {
    let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
    if Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status().is_err() {
        assert!(!strict, "systemd-analyze is not installed");
        return eprintln!("skipped: systemd-analyze is not installed");
    }
    let folder = Folder::new("unit");
    let file = folder.path().join("rooftop.service");
    // It looks whether the program is there.
    let here =
        read("packaging/systemd/rooftop.service").replace("/usr/bin/rooftop", env!("CARGO_BIN_EXE_rooftop"));
    fs::write(&file, here).unwrap();
    let analyze = |args: &[&str]| {
        let output = Command::new("systemd-analyze").args(args).arg(&file).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (sound, said) = analyze(&["verify", "--man=no"]);
    assert!(sound && said.is_empty(), "{said}");
    // Of 100. What is left is the network, and the port numbers that it may bind.
    let (confined, said) = analyze(&["security", "--offline=true", "--no-pager", "--threshold=18"]);
    assert!(confined, "{said}");
}

#[test]
fn what_stops_a_node_waits_for_its_drains() {
    let seconds = |text: &str| Duration::from_secs(text.trim_end_matches('s').parse().unwrap());
    let unit = seconds(&unit("TimeoutStopSec")[0]);
    let compose = read("packaging/compose/compose.yaml");
    let compose = compose.lines().find_map(|line| line.trim().strip_prefix("stop_grace_period: ")).unwrap();
    let files = configurations();
    assert!(files.len() > 9, "{files:?}");
    for file in files {
        let config =
            Config::load(&file).unwrap_or_else(|problems| panic!("{}: {problems:?}", file.display()));
        let relay = config.ingest.drain + config.ingest.relay.end_timeout + Duration::from_secs(5);
        let tiers = config.shield.drain + config.edge.drain;
        let needed = relay + config.origin.drain + config.archive.drain + tiers;
        assert!(needed < unit.min(seconds(compose)), "{}: {needed:?}", file.display());
    }
}

#[test]
fn the_package_has_what_the_unit_and_the_scripts_name() {
    let assets = assets();
    let has = |wanted: &str| {
        assets.iter().any(|(source, target)| {
            let name = source.rsplit('/').next().unwrap();
            let whole = if target.ends_with('/') { format!("/{target}{name}") } else { format!("/{target}") };
            whole == wanted
        })
    };
    let start = unit("ExecStart").remove(0);
    let mut words = start.split(' ');
    assert!(has(words.next().unwrap()), "{start}");
    let config = words.next_back().unwrap();
    assert!(has(config), "{start}");
    let postinst = read("packaging/debian/postinst");
    let user = unit("User").remove(0);
    assert!(read("packaging/systemd/rooftop.sysusers").contains(&format!("u {user} -")));
    assert!(has("/usr/lib/systemd/system/rooftop.service") && has("/usr/lib/sysusers.d/rooftop.conf"));
    assert!(postinst.contains("systemd-sysusers rooftop.conf"));
    // Of those that are not made by scripts/deb.sh.
    let made = read("scripts/deb.sh");
    for (source, _) in &assets {
        let (folder, name) = source.rsplit_once('/').unwrap_or((".", source));
        if let Some(made_there) = source.strip_prefix("target/package/") {
            let made_there = made_there.split('/').next().unwrap();
            assert!(made.contains(&format!("$made/{made_there}")), "{source}");
        } else if let Some(ending) = name.strip_prefix('*') {
            let mut there = fs::read_dir(Path::new(ROOT).join(folder)).unwrap();
            assert!(there.any(|file| file.unwrap().path().to_string_lossy().ends_with(ending)), "{source}");
        } else if !source.starts_with("target/") {
            assert!(Path::new(ROOT).join(source).is_file(), "{source}");
        }
    }
    for script in ["debian/postinst", "debian/prerm", "debian/postrm", "fleet-secrets.sh"] {
        let script = Path::new(ROOT).join("packaging").join(script);
        let shell =
            if fs::read_to_string(&script).unwrap().starts_with("#!/bin/sh") { "dash" } else { "bash" };
        assert!(
            Command::new(shell).arg("-n").arg(&script).status().unwrap().success(),
            "{}",
            script.display()
        );
    }
}

#[test]
fn secrets_of_a_fleet_are_made_once() {
    let folder = Folder::new("secrets");
    let make = |nodes: &[&str]| {
        let script = Path::new(ROOT).join("packaging/fleet-secrets.sh");
        let output = Command::new(script).arg(folder.path()).args(nodes).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), said)
    };
    let files = || -> BTreeMap<_, _> {
        let files = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        files.map(|path| (path.file_name().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
    };
    let (made, said) = make(&["pop-1=pop-1.example.net,192.0.2.7,2001:db8::7", "origin-1"]);
    assert!(made && said.contains("DNS:pop-1.example.net, IP:192.0.2.7, IP:2001:db8::7"), "{said}");
    let first = files();
    let (again, said) = make(&["pop-1", "origin-2"]);
    assert!(again && said.starts_with("origin-2: ") && said.lines().count() == 1, "{said}");
    let then = files();
    assert_eq!(then.len(), first.len() + 2);
    assert!(first.iter().all(|(name, bytes)| then[name] == *bytes), "what was there has changed");
    let (made, said) = make(&["../elsewhere"]);
    assert!(!made && said.contains("'../elsewhere'"), "{said}");
}

/// A service of the compose file, on an address of this machine.
struct Service<'a> {
    name: &'a str,
    spec: &'a Value,
    address: String,
    /// What is mounted where, the longest path first.
    mounts: Vec<(String, PathBuf)>,
}

/// What Docker would run of it.
struct Fleet<'a> {
    services: BTreeMap<&'a str, Service<'a>>,
    folder: &'a Folder,
    running: BTreeMap<&'a str, Child>,
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// An instruction of a stage of the Dockerfile that has JSON behind it.
fn instruction(stage: &str, name: &str) -> Vec<String> {
    let text = read("packaging/Dockerfile").replace("\\\n", " ");
    let ending = format!(" AS {stage}");
    let stage = text.split("\nFROM ").find(|part| part.lines().next().unwrap().ends_with(&ending));
    let stage = stage.unwrap_or_else(|| panic!("no stage{ending}"));
    let line = stage.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_default();
    let json = line.find('[').map_or("[]", |at| &line[at..]);
    strings(&serde_json::from_str(json).unwrap_or_else(|error| panic!("{line}: {error}")))
}

impl<'a> Fleet<'a> {
    fn new(compose: &'a Value, folder: &'a Folder) -> Fleet<'a> {
        let services = compose["services"].as_object().unwrap();
        let declared: BTreeSet<_> = compose["volumes"].as_object().unwrap().keys().collect();
        // Of this process alone: the ports of the file are the same in every run.
        let id = std::process::id() % 60_000;
        let services = services.iter().zip(10..).map(|((name, spec), last)| {
            let address = format!("127.{}.{}.{last}", 1 + id / 250, id % 250);
            let mounts = strings(&spec["volumes"]).into_iter().map(|volume| {
                let mut parts = volume.split(':');
                let (source, target) = (parts.next().unwrap(), parts.next().unwrap().to_owned());
                if let Some(file) = source.strip_prefix("./") {
                    assert!(Path::new(ROOT).join("packaging/compose").join(file).is_file(), "{volume}");
                    return (target, folder.path().join(file));
                }
                assert!(declared.contains(&source.to_owned()), "volume {source} of {name} is not declared");
                let there = folder.path().join("volumes").join(source);
                fs::create_dir_all(&there).unwrap();
                (target, there)
            });
            let mut mounts: Vec<_> = mounts.collect();
            mounts.sort_by_key(|(target, _)| std::cmp::Reverse(target.len()));
            (name.as_str(), Service { name, spec, address, mounts })
        });
        Fleet { services: services.collect(), folder, running: BTreeMap::new() }
    }

    /// What a service is told, with this machine's paths and addresses.
    fn here(&self, service: &Service<'_>, text: &str) -> String {
        let mut text = text.replace("0.0.0.0:", &format!("{}:", service.address));
        for (target, there) in &service.mounts {
            text = text.replace(target.as_str(), there.to_str().unwrap());
        }
        for other in self.services.values() {
            text = text.replace(&format!("//{}:", other.name), &format!("//{}:", other.address));
            text = text.replace(&format!("host = {:?}", other.name), &format!("host = {:?}", other.address));
        }
        text
    }

    /// Entry point and arguments, as the compose file or else the image says.
    fn command(&self, service: &Service<'_>) -> Command {
        let image = service.spec["image"].as_str().unwrap();
        let stage = image.strip_prefix("rooftop-").unwrap_or(image);
        let or_image = |key: &str, of_image: &str| match strings(&service.spec[key]) {
            given if given.is_empty() => instruction(stage, of_image),
            given => given,
        };
        let (entry, mut args) = (or_image("entrypoint", "ENTRYPOINT"), or_image("command", "CMD"));
        let program = match entry[0].as_str() {
            "rooftop" => env!("CARGO_BIN_EXE_rooftop").into(),
            "/usr/lib/rooftop/fleet-secrets" => {
                // Nodes are reached by their addresses here.
                for node in &mut args[1..] {
                    *node = format!("{node}={node},{}", self.services[node.as_str()].address);
                }
                let packaged = assets().into_iter().find(|(_, target)| entry[0] == format!("/{target}"));
                Path::new(ROOT).join(packaged.unwrap().0)
            }
            "etcd" => PathBuf::from("etcd"),
            other => panic!("{other} is not known here"),
        };
        let mut command = Command::new(program);
        command.args(&entry[1..]).args(args.iter().map(|arg| self.here(service, arg)));
        command
    }

    /// Starts a service once those that it depends on are as it wants them, and waits until it serves.
    fn up(&mut self, name: &'a str) {
        if self.running.contains_key(name) {
            return;
        }
        let spec = self.services[name].spec;
        for (other, wanted) in spec["depends_on"].as_object().into_iter().flatten() {
            let (&other, _) = self.services.get_key_value(other.as_str()).unwrap();
            self.up(other);
            if wanted["condition"] == "service_completed_successfully" {
                assert!(self.running.get_mut(other).unwrap().wait().unwrap().success(), "{other}");
            }
        }
        let service = &self.services[name];
        let log = File::create(self.folder.path().join(format!("{name}.log"))).unwrap();
        let image = spec["image"].as_str().unwrap();
        let mut command = match image {
            _ if !image.starts_with("rooftop") => {
                // Another program that speaks S3: the real one is not to be had here.
                let mut command = Command::new(Path::new(ROOT).join("target/tools/moto/bin/moto_server"));
                command.args(["-H", &service.address, "-p", "9000"]);
                command
            }
            _ => self.command(service),
        };
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        match image {
            "rooftop-etcd" => {
                let url = format!("http://{}:2379/health", service.address);
                eventually(name, || get(&url).text().contains("true").then_some(()));
            }
            "rooftop" if spec["entrypoint"].is_null() => {
                let mut line = String::new();
                BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
                let log = || fs::read_to_string(self.folder.path().join(format!("{name}.log"))).unwrap();
                assert!(line.contains("listeners"), "{name} did not start:\n{}", log());
            }
            "rooftop" => {}
            _ => {
                // `mkdir -p /data/BUCKET`
                let command = strings(&spec["command"]).join(" ");
                let bucket = command.split("/data/").nth(1).unwrap().split(' ').next().unwrap();
                eventually("the bucket", || make_bucket(&format!("{}:9000", service.address), bucket));
            }
        }
        self.running.insert(name, child);
    }

    fn nodes(&self) -> Vec<&'a str> {
        let is_node = |service: &&Service<'_>| {
            service.spec["image"] == "rooftop" && service.spec["entrypoint"].is_null()
        };
        self.services.values().filter(is_node).map(|service| service.name).collect()
    }

    fn config(&self, node: &str) -> PathBuf {
        let mounts = &self.services[node].mounts;
        mounts.iter().find(|(target, _)| target == "/etc/rooftop/rooftop.toml").unwrap().1.clone()
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        for (name, child) in &mut self.running {
            if std::thread::panicking() {
                let log = fs::read_to_string(self.folder.path().join(format!("{name}.log")));
                eprintln!("--- {name} ---\n{}", log.unwrap_or_default());
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn make_bucket(host: &str, bucket: &str) -> Option<()> {
    let mut stream = TcpStream::connect(host).ok()?;
    let rest = "HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\nHost:";
    write!(stream, "PUT /{bucket} {rest} {host}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(())
}

/// YAML as JSON, read by the Python that the S3 server of the tests brings.
fn yaml(file: &str) -> Value {
    let convert = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let python = Path::new(ROOT).join("target/tools/moto/bin/python3");
    let output = Command::new(python).args(["-c", convert]).arg(Path::new(ROOT).join(file)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_fleet_of_the_compose_file_takes_a_broadcast_and_keeps_it() {
    let strict = std::env::var_os("ROOFTOP_STRICT").is_some_and(|value| value == "1");
    let moto = Path::new(ROOT).join("target/tools/moto/bin/moto_server");
    let etcd = Command::new("etcd").arg("--version").stdout(Stdio::null()).status();
    if !moto.exists() || etcd.is_err() {
        assert!(!strict, "etcd or {} is missing: run scripts/deps.sh test", moto.display());
        return eprintln!("skipped: no etcd, or no {}", moto.display());
    }
    let _turn = real_time(Share::Core);
    let folder = Folder::new("compose");
    let compose = yaml("packaging/compose/compose.yaml");
    let mut fleet = Fleet::new(&compose, &folder);
    for node in fleet.nodes() {
        let file = fleet.config(node);
        let text = read(&format!("packaging/compose/{}", file.file_name().unwrap().to_str().unwrap()));
        let service = &fleet.services[node];
        // In a container every node has a loopback of its own.
        let admin = format!("\n[admin]\nlisten = \"{}:9090\"\n", service.address);
        fs::write(&file, fleet.here(service, &text) + &admin).unwrap();
    }
    let names: Vec<_> = fleet.services.keys().copied().collect();
    for name in names {
        fleet.up(name);
    }
    let ask = |program: &[String], more: &[&str]| {
        assert_eq!(program[0], "rooftop");
        rooftop().args(&program[1..]).args(more).output().unwrap()
    };
    let health = instruction("rooftop", "HEALTHCHECK");
    for node in fleet.nodes() {
        let admin = format!("{}:9090", fleet.services[node].address);
        eventually(node, || ask(&health, &["--admin", &admin]).status.success().then_some(()));
    }

    let clip = Clip::make(
        "compose",
        Recipe { size: "426x240", rate: "30", seconds: 4, extra: &["-tune", "zerolatency"] },
    );
    let key = stream_key(&fleet.config("pop-1"), "show", "1h");
    let url = format!("rtmps://{}:1936/live/{key}", fleet.services["pop-1"].address);
    let broadcaster = Broadcaster::send(&clip, &url, -1);
    // Through the shield, at an edge that has no broadcasters.
    let playlist = format!("https://{}:8443/live/show/index.m3u8", fleet.services["edge-1"].address);
    let watch = |frames: &str| {
        let mut command = ffmpeg();
        command.args(["-live_start_index", "0", "-i", &playlist, "-map", "0:v:0", "-frames:v", frames]);
        command.args(["-f", "null", "-"]).output().unwrap()
    };
    eventually("the stream at the edge", || watch("1").status.success().then_some(()));
    let seen = watch("90");
    let said = String::from_utf8_lossy(&seen.stderr);
    assert!(seen.status.success() && said.is_empty(), "{said}");

    // In the fleet's bucket, as another origin than the stream's sees it.
    let kept = || -> Option<()> {
        let mut command = rooftop();
        command.args(["archive", "verify", "--json", "--config"]).arg(fleet.config("origin-2"));
        let output = command.output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).ok()?;
        (output.status.success() && told["broadcasts"][0]["broadcast"].as_str()?.starts_with("show-"))
            .then_some(())
    };
    eventually("the broadcast in the bucket", kept);
    broadcaster.kill();

    // As `docker compose down` does.
    assert_eq!(read("packaging/Dockerfile").matches("STOPSIGNAL SIGTERM").count(), 1);
    for node in ["pop-1", "edge-1", "shield-1", "origin-1", "origin-2"] {
        let mut child = fleet.running.remove(node).unwrap();
        terminate(&child);
        assert!(child.wait().unwrap().success(), "{node}");
    }
    doctors_see_the_stores(&mut fleet);
}

/// What a doctor says of etcd and the bucket: while they are there, without the bucket, and when both are gone.
fn doctors_see_the_stores(fleet: &mut Fleet<'_>) {
    let file = fleet.config("origin-1");
    let told = || -> Value {
        let output = rooftop().args(["doctor", "--json", "--config"]).arg(&file).output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.success(), told["level"] != "failure", "{told:#}");
        told
    };
    let check = |told: &Value, about: &str, level: &str, found: &str, advice: &str| {
        let of = |finding: &&Value| finding["about"] == about;
        let finding = told["findings"].as_array().unwrap().iter().find(of).unwrap();
        assert_eq!(finding["level"], level, "{finding:#}");
        assert!(finding["found"].as_str().unwrap().contains(found), "{finding:#}");
        assert!(finding["advice"].as_str().unwrap_or_default().contains(advice), "{finding:#}");
    };
    let there = told();
    check(&there, "etcd", "good", "0 roles are announced", "");
    check(&there, "archive", "good", "1 broadcasts are kept", "");
    let text = fs::read_to_string(&file).unwrap();
    let bucket = text.lines().find(|line| line.starts_with("bucket = ")).unwrap();
    fs::write(&file, text.replace(bucket, "bucket = \"elsewhere\"")).unwrap();
    check(&told(), "archive", "failure", "bucket elsewhere: NoSuchBucket", "make the bucket");
    fs::write(&file, &text).unwrap();
    for (_, mut child) in std::mem::take(&mut fleet.running) {
        let _ = child.kill();
        let _ = child.wait();
    }
    let gone = told();
    check(&gone, "etcd", "failure", "Connection refused", "is it running at cluster.etcd");
    check(&gone, "archive", "failure", "Connection refused", "is it running at archive.endpoint");
}

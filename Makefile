# The same recipes on a desk and in CI. The work is done in scripts/.

# `make run DEMO=0` leaves the demo broadcast out.
DEMO ?= 1

# `make fuzz MINUTES=60` takes an hour.
MINUTES ?= 5

# `make test-cluster ONLY=kill-origin,drain-origin` plays only these.
ONLY ?= all

.PHONY: run build deb web deps deps-test test test-cluster test-players test-sync check fuzz bench soak clean
.NOTPARALLEL:

run: build
	scripts/run.sh $(DEMO)

build: deps web
	cargo build --release --locked

# A Debian package: target/debian/rooftop_*.deb.
deb: build
	scripts/deb.sh

web:
	scripts/web.sh web

deps:
	scripts/deps.sh

deps-test:
	scripts/deps.sh test

test: deps-test web
	scripts/test.sh

# Ten minutes of playlists and media under lints; all players for five minutes, then through drops and a shed rung.
test-players: deps-test web
	scripts/test-players.sh

# An hour of media through real encoders as fast as they go, twice; about five minutes.
test-sync: deps
	scripts/test-sync.sh

test-cluster: deps-test web
	scripts/test-cluster.sh $(ONLY)

check: deps web
	scripts/check.sh

fuzz: deps
	scripts/fuzz.sh $(MINUTES)

bench: deps-test web
	scripts/bench.sh

soak: deps web
	scripts/soak.sh

clean:
	cargo clean
	rm -rf web/node_modules tests/browser/node_modules tests/cache-tests/node_modules tests/playlists/node_modules

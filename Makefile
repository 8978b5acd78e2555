# SPIKE HA: everything a newcomer or a CI needs is one target away.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/spike-ha/spike-ha/node.Version=$(VERSION) -X github.com/spike-ha/spike-ha/seal/keeper.Version=$(VERSION)
BIN     := bin
# Erases what Go copies of keys: seal/internal/erase.
export GOEXPERIMENT ?= runtimesecret
PROTOS  := fsm/fsmpb/fsm.proto cluster/internal/peerpb/peer.proto seal/internal/sealpb/seal.proto snapshot/internal/archivepb/archive.proto

.DEFAULT_GOAL := help
.PHONY: help build dev demo test test-long test-minio jepsen jepsen-full jepsen-soak jepsen-must-fail bench bench-all fuzz lint fmt proto pins clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build nexus, keeper and spikectl, static, into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

dev: build ## run a whole cluster on this machine: Ctrl-C stops it
	$(BIN)/spikectl dev up

demo: build ## the guided tour: kill the leader, kill everything, and see it come back
	$(BIN)/spikectl dev up --demo --dir $$(mktemp -d)/spike

test: build ## all tests, with the race detector; a few minutes
	$(GO) test -race -timeout 15m ./...
	cd tests/conformance && $(GO) test -timeout 10m ./...

test-long: build ## what takes minutes per case: many runs in a row, long fuzzing
	SPIKE_TEST_LONG=1 $(GO) test -race -timeout 60m -count 1 ./...
	$(MAKE) fuzz FUZZTIME=300000x

test-minio: ## the tests of S3 against minio, a second implementation; 2 minutes and 2 GB of caches the first time
	$(GO) test -race -tags minio -timeout 20m -count 1 ./snapshot/s3

# The programs and the suite are built from the same code, which reports name.
JEPSEN = $(GO) build -ldflags '-X main.revision=$(VERSION)' -o $(BIN)/ ./tests/jepsen && $(BIN)/jepsen -binaries $(BIN) -resume=$(or $(RESUME),false) -seed $(or $(SEED),0)
# Who may makes a network for each process.
NAMESPACES = $(if $(and $(filter 0,$(shell id -u)),$(shell command -v nft)),-namespaces)
HOURS ?= 2
jepsen: build ## attack clusters of the real programs; under 5 minutes, alone on the machine
	$(JEPSEN)

jepsen-full: build bin/failpoints bin/previous ## every row of the table; RESUME=true goes on where it was, SEED=n repeats
	$(JEPSEN) -tier full -length 30s $(NAMESPACES)

jepsen-soak: build bin/failpoints ## two random harms at a time for HOURS hours
	$(JEPSEN) -tier soak -for $(HOURS)h -length 45s -pace 30ms $(NAMESPACES)

.PHONY: bin/failpoints bin/previous
bin/failpoints: # programs that can be told to die at a step
	CGO_ENABLED=0 $(GO) build -tags failpoints -o $@/ ./cmd/...

bin/previous: # programs of the version before, out of the history
	GO='$(GO)' tests/upgrade/build-previous $@

jepsen-must-fail: build ## programs with defects on purpose: fails unless the suite catches each of them
	CGO_ENABLED=0 $(GO) build -tags planted -o $(BIN)/planted/ ./cmd/... ./tests/jepsen
	$(JEPSEN) -must-fail -binaries $(BIN)/planted

bench: ## measure real processes over mTLS, against a floor in the same run; ~6 minutes, alone on the machine
	$(GO) test -run '^$$' -bench . -timeout 30m ./tests/e2e

bench-all: ## the benchmarks of all packages, with memory
	$(GO) test -run '^$$' -bench . -benchmem -timeout 60m ./...

# A number of executions, not a time: when its time is up, the fuzzer of Go
# sometimes reports its own deadline as a failure.
FUZZTIME ?= 20000x
fuzz: ## each fuzz target for FUZZTIME executions
	@for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
		done; \
	done

lint: pins ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go' | grep -v '\.pb\.go$$')); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	cd tests/conformance && $(GO) vet ./...
	cd tools && $(GO) build -o ../$(BIN)/tools/ tool
	$(BIN)/tools/staticcheck ./...

fmt: ## format the code
	gofmt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$')

# raft-boltdb v2.3.1 imports a package that raft v1.8.0's metrics module no
# longer has: "go get -u" would break the build or, worse, lower raft.
pins: ## check the versions that only fit together as they are
	@$(GO) list -m -f '{{.Path}} {{.Version}}' github.com/hashicorp/raft github.com/hashicorp/raft-boltdb/v2 | \
	diff - tools/pins.txt || { echo "raft and raft-boltdb must stay at the versions in tools/pins.txt"; exit 1; }

proto: ## generate code from the .proto files
	cd tools && $(GO) build -o ../$(BIN)/tools/ tool ./protogen
	PATH="$(CURDIR)/$(BIN)/tools:$$PATH" $(BIN)/tools/protogen . $(PROTOS)

clean: ## remove what was built
	rm -rf $(BIN)

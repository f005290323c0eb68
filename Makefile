# Two commands are enough to begin: make run, make test.

GO ?= go
BIN ?= bin
DATA ?= ./data
PROGRAMS := est-server broker-bridge estclient-example

# Without cgo the binaries run on any Linux of their architecture. Only PKCS#11 needs it: make build CGO_ENABLED=1
# Keys in a cloud are built in by TAGS: awskms, azurekms, cloudkms.
CGO_ENABLED = 0
TAGS =
BUILD = CGO_ENABLED=$(CGO_ENABLED) $(GO) build -trimpath -tags "$(TAGS)"

.PHONY: build
build: $(PROGRAMS:%=$(BIN)/%)

# The Go tool knows best what is up to date.
.PHONY: $(PROGRAMS:%=$(BIN)/%)
$(BIN)/est-server:
	@$(BUILD) -o $@ ./server
$(BIN)/broker-bridge $(BIN)/estclient-example: $(BIN)/%:
	@$(BUILD) -o $@ ./$*

## run: build, make CAs and certificates in DATA (./data) the first time, and serve (ARGS: more arguments)
.PHONY: run
run: build
	@exec $(BIN)/est-server run --data $(DATA) $(ARGS)

## test: install what the tests need (on Debian), run them all (ARGS: more arguments of go test)
.PHONY: test
test:
	@GO="$(GO)" scripts/test.sh $(ARGS)

## check: format, vet, staticcheck, tidy module files, import directions
.PHONY: check
check: $(BIN)/tools/staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
		if [ -n "$$unformatted" ]; then echo "not gofmt-ed: $$unformatted" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags testhooks ./...
	CGO_ENABLED=0 $(GO) vet -tags "awskms azurekms cloudkms" ./ca/keystore
	$(BIN)/tools/staticcheck ./...
	$(BIN)/tools/staticcheck -tags testhooks ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 ./test/imports

.PHONY: $(BIN)/tools/staticcheck
$(BIN)/tools/staticcheck:
	@cd tools && $(GO) build -o $(abspath $@) honnef.co/go/tools/cmd/staticcheck

## demo: the whole story in one terminal, in under a minute
.PHONY: demo
demo: build
	@NATAL_BIN=$(abspath $(BIN)) $(GO) run ./test/demo $(ARGS)

## bench: what a durable certificate costs beside a bare TLS handler
.PHONY: bench
bench: build
	@NATAL_BIN=$(abspath $(BIN)) $(GO) run ./test/load $(ARGS)
	@$(GO) test ./ca -run '^$$' -bench MillionRevoked -benchtime 5x

## storm: the failure tests as long as they promise: kills, restarts, revocations and jumps of the clock, about an hour (ARGS: more arguments of go test)
.PHONY: storm
storm:
	NATAL_STORM=1 $(GO) test -count=1 -v -timeout 4h $(ARGS) ./test/crash

## openapi: write docs/openapi.json, the description of the administration API
.PHONY: openapi
openapi:
	$(GO) test -count=1 ./server/admin -run TestOpenAPIIsCommitted -update

## fuzz: every fuzz target for FUZZTIME (default 15m)
.PHONY: fuzz
fuzz:
	@GO="$(GO)" scripts/fuzz.sh

.PHONY: clean
clean:
	rm -rf $(BIN)

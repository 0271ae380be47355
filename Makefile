# halfproxy: `make help` lists what there is.
#
# Go and make are all that has to be there: what a target needs besides, it
# installs from Debian's or Ubuntu's packages, as root.

GOLANGCI_VERSION := v2.15.0
GOLANGCI := bin/tools/golangci-lint-$(GOLANGCI_VERSION)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
GO_BUILD := go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
ARCHS ?= amd64 arm64
BIN ?= $(CURDIR)/bin
FUZZTIME ?= 30s
KERNELS ?= 5.10 6.1 6.12
export CGO_ENABLED ?= 0

.DEFAULT_GOAL := build
.PHONY: build packages generate test test-kernels lint bench simulate fuzz demo clean help

build: ## build bin/halfproxy, one static file
	$(GO_BUILD) -o $(BIN)/halfproxy ./cmd/halfproxy

# The same commit makes the same bytes, anywhere, with the same version of Go.
packages: ## build .deb, .rpm, an OCI image, bills of materials and sums into bin/packages, for ARCHS (amd64 arm64)
	set -e; for arch in $(ARCHS); do GOOS=linux GOARCH=$$arch $(GO_BUILD) -o $(BIN)/linux-$$arch/halfproxy ./cmd/halfproxy; done
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) go -C deploy/package run . -bin $(BIN) -version '$(VERSION)' -architectures '$(ARCHS)'

generate: ## rebuild the BPF objects, and the schemas and reference of the configuration (clang 19)
	scripts/need clang-19 llvm-19 libbpf-dev linux-libc-dev
	go generate ./...

# Those that measure how fast nodes react are run one at a time, the others before.
IN_TIME := backend|bfd|bgp|cluster|cmd/halfproxy|doctor|health|lab
test: ## run every test, with the race detector; as root, else the kernel's are skipped
	scripts/need gcc libc6-dev frr bird2 exabgp iproute2 ethtool curl chromium prometheus rpm
	CGO_ENABLED=1 go test -race -timeout 30m $$(go list ./... | grep -vE '/($(IN_TIME))$$')
	CGO_ENABLED=1 go test -race -p 1 -timeout 30m $$(go list ./... | grep -E '/($(IN_TIME))$$')
	go -C deploy/package test ./...

# -short: packets are slow where the CPU is emulated, and the program's arithmetic
# is the same on every kernel; what differs is what loads and how it attaches. One
# test reads the documents, which are not in the machine.
test-kernels: ## run the data plane's tests on kernels 5.10, 6.1 and 6.12, in virtual machines; KERNELS=5.10 for one
	scripts/need qemu-system-x86 cpio kmod busybox-static xz-utils debian-archive-keyring
	CGO_ENABLED=0 go test -c -o bin/xdp.test ./xdp
	set -e; for kernel in $(KERNELS); do scripts/vm $$kernel bin/xdp.test -test.short -test.skip Documents; done

lint: $(GOLANGCI) ## go vet and golangci-lint
	go vet ./...
	$(GOLANGCI) run
	cd deploy/package && $(CURDIR)/$(GOLANGCI) run

$(GOLANGCI):
	GOBIN=$(CURDIR)/bin/tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv bin/tools/golangci-lint $@

bench: ## tell how fast packets, tables, services and checks go here, as ratios where they depend on the machine (root)
	@uname -srm; nproc
	go test -run '^$$' -bench Speed -benchtime 1x ./xdp
	go test -run '^$$' -bench Checks -benchtime 1x ./health
	go test -run '^$$' -bench Flows -benchtime 1x ./cluster

simulate: ## simulate how many flows break, by several ways of tracking them
	go run ./track/simulate -plot docs/tracking.svg

fuzz: ## fuzz everything that reads bytes or files, FUZZTIME (30s) each
	scripts/fuzz $(FUZZTIME)

demo: build ## three nodes, a router, backends and a client on this machine, and the story of two failures (root)
	scripts/need
	bin/halfproxy lab

clean: ## remove what was built
	rm -rf bin

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

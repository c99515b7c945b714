# Every target installs what it needs; only Go, make and a Debian are assumed.

SHELL := /bin/bash -eu -o pipefail
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/memqos
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := $(CACHE)/tools/golangci-lint-$(GOLANGCI_LINT_VERSION)/golangci-lint
PROMTOOL := $(CACHE)/tools/prometheus/promtool
PROMETHEUS := $(CACHE)/tools/prometheus/prometheus

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
HELM_VERSION := v3.22.0
HELM := $(CACHE)/tools/helm-$(HELM_VERSION)/helm

LDFLAGS := -s -w -X main.version=$(VERSION) -X main.revision=$(REVISION)

FUZZTIME ?= 15s

.PHONY: help
help: ## Show this text
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Boot a real node in a virtual machine, run memqos on it, show what it wrote
	go run ./hack/demo

.PHONY: test
test: node unit browser chart prometheus rules fuzz e2e ## Run the tests of CI, those on real nodes included; e2e-* and api have the longer ones

.PHONY: build
build: ## Build bin/memqos, static
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/memqos ./cmd/memqos

.PHONY: image
image: ## Build bin/memqos-image.tar from the Dockerfile, without a registry; ARCH=arm64 for that
	hack/image.sh bin/memqos-image.tar $(ARCH)

.PHONY: chart
chart: $(HELM) $(PROMTOOL) ## Test the Helm chart, its alerts included
	$(HELM) lint --strict --kube-version 1.37.1 deploy/helm/memqos
	HELM=$(HELM) PROMTOOL=$(PROMTOOL) go test -tags chart ./test/chart
	$(PROMTOOL) check rules deploy/helm/memqos/files/alerts.yaml
	$(PROMTOOL) test rules test/chart/testdata/alerts_test.yaml

.PHONY: prometheus
prometheus: $(PROMETHEUS) ## Have a real Prometheus scrape real agents: dashboards' queries, alerts; MEMQOS_IMAGES=DIR draws
	PROMETHEUS=$(PROMETHEUS) MEMQOS_IMAGES=$(abspath $(MEMQOS_IMAGES)) go test -tags e2e -count=1 -timeout 15m -v -run TestPrometheus ./test/footprint

.PHONY: node
node: ## Fill the cache with what a test node needs: kernel, image, Kubernetes
	go run ./hack/testnode/cmd/testnode build

.PHONY: unit
unit: ## Run the tests that need no node, with the race detector
	go vet ./...
	go vet -tags e2e,chart,browser,kernel ./...
	go test -race ./...

.PHONY: browser
browser: ## Test the status page in a real Chromium, which is installed
	go test -tags browser -count=1 -v ./test/see

.PHONY: images
images: $(HELM) ## Take the pictures in docs/images, from a real node
	mkdir -p docs/images
	HELM=$(HELM) MEMQOS_IMAGES=$(CURDIR)/docs/images go test -tags e2e -count=1 -timeout 40m -v -run 'TestSee$$' ./test/e2e
	go run ./hack/term/cmd/term docs/images/*.txt

.PHONY: fuzz
fuzz: ## Fuzz every parser for FUZZTIME (15s)
	hack/fuzz.sh $(FUZZTIME)

.PHONY: e2e
e2e: ## Run the tests that need a node; those of the other e2e targets apart
	go test -tags e2e -count=1 -timeout 90m -p 1 -v -run '$(or $(RUN),.)' -skip '$(if $(RUN),^$$,TestInTime|TestFaults|TestCost|TestSafety|TestHelm|TestSee)' ./hack/testnode ./test/e2e

.PHONY: e2e-helm
e2e-helm: $(HELM) ## Install the chart by helm on a real node with a whole control plane: parity, upgrade, rollback, uninstall; kubectl memqos, the page
	HELM=$(HELM) go test -tags e2e -count=1 -timeout 60m -v -run '$(or $(RUN),TestHelm|TestSee)' ./test/e2e

.PHONY: e2e-time
e2e-time: ## Measure in-time behaviour at length: MEMQOS_STARTS (50) container starts, 20 overwrites of each kind, 5 minutes of ticks, 50 kills, 5 idle minutes
	MEMQOS_STARTS=$(or $(MEMQOS_STARTS),50) go test -tags e2e -count=1 -timeout 120m -v -run '$(or $(RUN),TestInTime|TestFaults|TestCost)' ./test/e2e

.PHONY: e2e-safety
e2e-safety: ## Run the experiments of docs/safety.md at length, into _artifacts/safety; an hour and a half
	MEMQOS_SAFETY=1 go test -tags e2e -count=1 -timeout 150m -parallel 1 -v -run '$(or $(RUN),TestSafety)' ./test/e2e

.PHONY: plots
plots: ## Draw docs/safety/*.svg and docs/images/*.svg from the CSV and the terminals' text beside them
	go run ./hack/term/cmd/term docs/images/*.txt
	shopt -s nullglob; go run ./hack/plot/cmd/plot docs/safety/*.csv

.PHONY: footprint
footprint: ## Measure the agent's memory, idle time, requests and system calls, for MEMQOS_IDLE (5m)
	go test -tags e2e -count=1 -timeout 30m -v -run TestFootprint ./test/footprint

.PHONY: rules
rules: ## Take each RBAC rule away in turn, on a real API server
	go test -tags e2e -count=1 -timeout 15m -v -run TestRules ./test/footprint

.PHONY: api
api: $(HELM) ## On API servers without a node: each RBAC rule taken away; what MEMQOS_AGENTS (200) agents ask; the chart on 1.24, 1.27 and 1.37
	HELM=$(HELM) go test -tags chart,e2e -count=1 -timeout 30m -v -run TestServers ./test/chart
	go test -tags e2e -count=1 -timeout 30m -v -run 'TestRules|TestScale' ./test/footprint

.PHONY: bench
bench: ## Run the benchmarks into bench.txt; compare: benchstat docs/bench/baseline.txt bench.txt
	TMPDIR=/dev/shm go test -run '^$$' -bench . -benchmem -count 6 -benchtime 100x ./qos ./cgroup ./controllers | tee bench.txt

.PHONY: e2e-matrix
e2e-matrix: ## Likewise on every kind of node: runtimes, layouts, kubelets 1.22 to 1.37
	MEMQOS_E2E_MATRIX=1 go test -tags e2e -count=1 -timeout 120m -v -run '$(if $(COLUMN),TestNode/$(COLUMN),TestNode|TestBesideKubelet)' ./test/e2e

.PHONY: record
record: ## Run e2e-matrix and record what the kubelets with the gate on wrote
	MEMQOS_RECORD=1 $(MAKE) e2e-matrix

.PHONY: update
update: $(HELM) $(PROMTOOL) ## Rewrite the golden files and what is generated in docs; read the diff
	go test ./cmd/memqos ./config ./metrics ./test/conformance -update
	go test ./test/reference -update # shows what the others have written
	HELM=$(HELM) PROMTOOL=$(PROMTOOL) go test -tags chart ./test/chart -update

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Lint, the package graph included
	$(GOLANGCI_LINT) run --allow-parallel-runners
	$(GOLANGCI_LINT) run --allow-parallel-runners --build-tags e2e,chart,browser,kernel ./cgroup ./hack/... ./test/...
	$(GOLANGCI_LINT) fmt --diff

.PHONY: licenses
licenses: ## Look at the licence of each module that is linked into memqos
	go run github.com/google/go-licenses@v1.6.0 check --disallowed_types=forbidden,restricted,unknown ./cmd/... 2> >(grep -Ev "non-Go code|^/" >&2)

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format
	$(GOLANGCI_LINT) fmt

# Out of Debian's package, which installed would start a server.
$(PROMTOOL) $(PROMETHEUS) &:
	@echo "fetching prometheus and promtool"
	mkdir -p $(@D)
	cd $(@D) && (apt-get download -qq prometheus || (apt-get update -qq && apt-get download -qq prometheus))
	cd $(@D) && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool ./usr/bin/prometheus && rm prometheus_*.deb

$(GOLANGCI_LINT):
	@echo "building golangci-lint $(GOLANGCI_LINT_VERSION) (a minute or two)"
	GOBIN=$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)

$(HELM):
	@echo "building helm $(HELM_VERSION) (a minute or two)"
	GOBIN=$(@D) go install helm.sh/helm/v3/cmd/helm@$(HELM_VERSION)

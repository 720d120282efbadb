# `make help` lists the targets. demo, test, torture and bench want root: they mount
# file systems and drop caches. The others want it only where packages are missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO      ?= go
PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
DATADIR ?= $(PREFIX)/share
MANDIR  ?= $(DATADIR)/man
BASHDIR ?= $(DATADIR)/bash-completion/completions
ZSHDIR  ?= $(DATADIR)/zsh/site-functions
FISHDIR ?= $(DATADIR)/fish/vendor_completions.d
LIBDIR  ?= $(PREFIX)/lib
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

PROGRAMS  := migrate thinctl hydrated
MAN_migrate  := 1
MAN_thinctl  := 1
MAN_hydrated := 8
GO_LDFLAGS := -X main.releaseVersion=$(VERSION)
# Without -buildvcs=false a build fails where the tree belongs to another user.
GO_BUILD  := $(GO) build -buildvcs=false -trimpath -ldflags '$(GO_LDFLAGS)'

# Linters and formatters are pinned in a module file of their own, so that they
# choose no version of anything that goes into the programs.
TOOL := $(GO) tool -modfile=tools.mod

# command:package, for .ci/need, which installs only what is missing.
NEED_BUILD := gcc:gcc /usr/include/stdlib.h:libc6-dev
NEED_MOUNT := losetup:mount mount:mount truncate:coreutils mkfs.ext4:e2fsprogs
NEED_DEMO  := $(NEED_BUILD) $(NEED_MOUNT) e2fsck:e2fsprogs
NEED_TEST  := $(NEED_DEMO) chattr:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs \
              fusermount3:fuse3 spin:spin strace:strace sqlite3:sqlite3 swapon:mount \
              mkswap:util-linux prlimit:util-linux addpart:util-linux \
              linux.uml:user-mode-linux insmod:kmod lvs:lvm2 dmsetup:dmsetup \
              thin_check:thin-provisioning-tools ip:iproute2 \
              nbdinfo:libnbd-bin nbdcopy:libnbd-bin qemu-img:qemu-utils qemu-io:qemu-utils \
              qemu-nbd:qemu-utils nbdkit:nbdkit fio:fio fincore:util-linux-extra \
              systemd-analyze:systemd rpm:rpm curl:curl prometheus:prometheus \
              chromium-headless-shell:chromium-headless-shell
NEED_LINT  := $(NEED_BUILD) shellcheck:shellcheck mandoc:mandoc
NEED_BENCH := $(NEED_DEMO) linux.uml:user-mode-linux insmod:kmod qemu-img:qemu-utils nbdcopy:libnbd-bin ddrescue:gddrescue \
              /usr/bin/time:time
NEED_MODEL := $(NEED_BUILD) spin:spin
NEED_SCREENSHOTS := $(NEED_BUILD) chromium-headless-shell:chromium-headless-shell /usr/share/fonts/opentype/inter:fonts-inter

.PHONY: help build demo test screenshots lint format bench model torture fuzz packages install uninstall clean \
        setup-build setup-demo setup-test setup-lint setup-bench setup-model setup-screenshots

## build: bin/migrate, bin/thinctl and bin/hydrated
build: setup-build
	$(GO_BUILD) -o bin/ $(PROGRAMS:%=./cmd/%)

help:
	@sed -n 's/^## //p' Makefile

## demo: move a real file system image where there is no room for a copy of it
demo: setup-demo build
	demo/demo.sh

## test: vet and all tests, some minutes
test: setup-test build
	$(GO) vet ./...
	GO='$(GO)' .ci/test

## screenshots: take the pictures of the page in docs anew
screenshots: setup-screenshots
	DECANT_SCREENSHOTS=1 $(GO) test -count=1 -run=Screenshots ./web

## lint: shellcheck, mandoc, golangci-lint with gofumpt; compiles the linters first
lint: setup-lint
	shellcheck .ci/need .ci/run .ci/test demo/*.sh packaging/*.sh web/*.sh
	mandoc -Tlint -Wwarning man/*.[18]
	$(TOOL) golangci-lint run ./...

## format: rewrite the Go files as gofumpt wants them
format:
	$(TOOL) gofumpt -w $$($(GO) list -f '{{.Dir}}' ./...)

## bench: time and memory beside cp, qemu-img, nbdcopy and ddrescue (BENCH_FLAGS=-h), beside dm-clone, and --export beside qemu-nbd
bench: setup-bench setup-test build
	$(GO_BUILD) -o bin/bench ./bench
	bin/bench $(BENCH_FLAGS)
	$(GO) test -run='^$$' -bench=Speed -benchtime=1x -timeout=30m ./integration/kernel
	$(GO) test -run='^$$' -bench=Export -benchtime=1x -timeout=30m ./integration

## model: search the model of the protocol with spin, in its larger forms as well
model: setup-model
	DECANT_MODEL=full $(GO) test -v -count=1 -timeout=2h ./clone/model

## torture: all tests in their nightly forms, hours
torture: setup-test build
	DECANT_NIGHTLY=1 DECANT_MODEL=full $(GO) test -count=1 -timeout=12h ./...

## fuzz: every fuzz target for FUZZTIME
FUZZTIME ?= 1m
fuzz: setup-build
	for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' "$$package" | grep '^Fuzz' || true); do \
			$(GO) test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) "$$package"; \
		done; \
	done

## packages: dist/*.deb and dist/*.rpm; compiles nfpm first
# A version of a package begins with a number; a tree without a tag has only a name.
PACKAGE_VERSION ?= $(if $(findstring .,$(VERSION)),$(patsubst v%,%,$(subst -,+,$(VERSION))),0.0.0+$(subst -,+,$(VERSION)))
PACKAGE_ARCH    ?= $(shell $(GO) env GOARCH)
packages: build
	packaging/stage.sh
	for packager in deb rpm; do \
		PACKAGE_VERSION='$(PACKAGE_VERSION)' PACKAGE_ARCH='$(PACKAGE_ARCH)' \
			$(TOOL) nfpm package --config packaging/nfpm.yaml --packager "$$packager" --target dist/; \
	done

## install: programs, man pages, completions and units under DESTDIR and PREFIX
install: build
	install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(MANDIR)/man1' '$(DESTDIR)$(MANDIR)/man8' '$(DESTDIR)$(BASHDIR)' \
		'$(DESTDIR)$(ZSHDIR)' '$(DESTDIR)$(FISHDIR)' '$(DESTDIR)$(LIBDIR)/systemd/system' \
		'$(DESTDIR)$(LIBDIR)/sysusers.d' '$(DESTDIR)$(LIBDIR)/tmpfiles.d'
	$(foreach p,$(PROGRAMS), \
		install -m 755 'bin/$(p)' '$(DESTDIR)$(BINDIR)/'; \
		install -m 644 'man/$(p).$(MAN_$(p))' '$(DESTDIR)$(MANDIR)/man$(MAN_$(p))/'; \
		'bin/$(p)' completion bash >'$(DESTDIR)$(BASHDIR)/$(p)'; \
		'bin/$(p)' completion zsh >'$(DESTDIR)$(ZSHDIR)/_$(p)'; \
		'bin/$(p)' completion fish >'$(DESTDIR)$(FISHDIR)/$(p).fish'; )
	sed 's,/usr/bin/hydrated,$(BINDIR)/hydrated,' packaging/hydrated.service >'$(DESTDIR)$(LIBDIR)/systemd/system/hydrated.service'
	install -m 644 packaging/hydrated.socket '$(DESTDIR)$(LIBDIR)/systemd/system/'
	install -m 644 packaging/decant.sysusers '$(DESTDIR)$(LIBDIR)/sysusers.d/decant.conf'
	install -m 644 packaging/decant.tmpfiles '$(DESTDIR)$(LIBDIR)/tmpfiles.d/decant.conf'

## uninstall: what install has put there; journals and pools stay
uninstall:
	$(foreach p,$(PROGRAMS), \
		rm -f '$(DESTDIR)$(BINDIR)/$(p)' '$(DESTDIR)$(MANDIR)/man$(MAN_$(p))/$(p).$(MAN_$(p))' '$(DESTDIR)$(BASHDIR)/$(p)' \
			'$(DESTDIR)$(ZSHDIR)/_$(p)' '$(DESTDIR)$(FISHDIR)/$(p).fish'; )
	rm -f '$(DESTDIR)$(LIBDIR)'/systemd/system/hydrated.{service,socket} \
		'$(DESTDIR)$(LIBDIR)/sysusers.d/decant.conf' '$(DESTDIR)$(LIBDIR)/tmpfiles.d/decant.conf'

## clean: what building has made
clean:
	rm -rf bin dist

setup-build: ; @.ci/need $(NEED_BUILD)
setup-demo:  ; @.ci/need $(NEED_DEMO)
setup-test:  ; @.ci/need $(NEED_TEST)
setup-lint:  ; @.ci/need $(NEED_LINT)
setup-bench: ; @.ci/need $(NEED_BENCH)
setup-model: ; @.ci/need $(NEED_MODEL)
setup-screenshots: ; @.ci/need $(NEED_SCREENSHOTS)

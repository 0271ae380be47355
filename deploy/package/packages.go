package main

import (
	"fmt"
	"io"
	"path/filepath"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // so that nfpm.Get knows it
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // likewise
)

const (
	homepage = "https://github.com/halfproxy/halfproxy"
	// The BPF objects inside the binary are the part with a choice.
	license = "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)"
	summary = "clustered, BGP-announcing anycast layer-4 load balancer"
)

// packages makes the Debian package and the RPM.
func (r release) packages(arch string, more []file) error {
	all, err := r.contents(arch)
	if err != nil {
		return err
	}
	var contents files.Contents
	for _, f := range append(all, more...) {
		contents = append(contents, r.content(f))
	}
	script := func(name string) string { return filepath.Join(r.source, "deploy/package/scripts", name) }
	for _, format := range []string{"deb", "rpm"} {
		info := &nfpm.Info{
			Name: "halfproxy", Arch: arch, Platform: "linux",
			Version: packageVersion(r.version, r.made), VersionSchema: "none", Release: "1",
			Section: "net", Priority: "optional", Maintainer: "The halfproxy authors <" + homepage + ">",
			Homepage: homepage, License: license, MTime: r.made, DisableGlobbing: true,
			Description: summary + "\n" + `Several edge nodes announce virtual IPs by BGP, agree on which backends are
healthy, and pass each packet on in XDP to a backend that answers the client
directly. The same binary is the backend's half.`,
			Overridables: nfpm.Overridables{
				Contents: contents,
				Scripts: nfpm.Scripts{
					PreInstall: script("preinstall"), PostInstall: script("postinstall"),
					PreRemove: script("preremove"), PostRemove: script("postremove"),
				},
			},
		}
		// Who has useradd, before our files come.
		if format == "deb" {
			info.Deb.Predepends = []string{"passwd"}
		} else {
			info.Depends = []string{"shadow-utils"}
			info.RPM.Summary = summary
			info.RPM.BuildHost = "localhost" // not that of this machine
		}
		if err := nfpm.PrepareForPackager(info, format); err != nil {
			return fmt.Errorf("%s: %w", format, err)
		}
		packager, err := nfpm.Get(format)
		if err != nil {
			return err
		}
		name := filepath.Join(r.out, packager.ConventionalFileName(info))
		if err := create(name, func(w io.Writer) error { return packager.Package(info, w) }); err != nil {
			return err
		}
	}
	return nil
}

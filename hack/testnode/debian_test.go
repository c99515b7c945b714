package testnode

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseListSources(t *testing.T) {
	got := parseListSources([]byte(`# a comment
deb http://mirror.example/debian bookworm main contrib # trailing
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] https://mirror.example/debian-security/ bookworm-security main
deb-src http://mirror.example/debian bookworm main

deb broken
`))
	want := []aptSource{
		{"http://mirror.example/debian", []string{"bookworm"}},
		{"https://mirror.example/debian-security", []string{"bookworm-security"}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(aptSource{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseDeb822Sources(t *testing.T) {
	got := parseDeb822Sources([]byte(`Types: deb deb-src
# a comment
URIs: http://one.example/debian/
 http://two.example/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://off.example/debian
Suites: bookworm
Enabled: no

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm

Types: deb
URIs: http://one.example/debian-security
Suites: bookworm-security
`))
	want := []aptSource{
		{"http://one.example/debian", []string{"bookworm", "bookworm-updates"}},
		{"http://two.example/debian", []string{"bookworm", "bookworm-updates"}},
		{"http://one.example/debian-security", []string{"bookworm-security"}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(aptSource{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPickArchives(t *testing.T) {
	sources := []aptSource{
		{"https://vendor.example/apt", []string{"nodistro"}},
		{"http://mirror.example/debian", []string{"bookworm", "bookworm-updates"}},
		{"http://mirror.example/debian-security", []string{"bookworm-security"}},
	}
	for _, test := range []struct{ codename, archive, security string }{
		{"bookworm", "http://mirror.example/debian", "http://mirror.example/debian-security"},
		{"trixie", "", ""},
	} {
		archive, security := pickArchives(sources, test.codename)
		if archive != test.archive || security != test.security {
			t.Errorf("%s: got %q and %q, want %q and %q", test.codename, archive, security, test.archive, test.security)
		}
	}
}

func TestOSReleaseField(t *testing.T) {
	const data = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n"
	if got := osReleaseField([]byte(data), "VERSION_CODENAME"); got != "bookworm" {
		t.Errorf("got %q", got)
	}
	if got := osReleaseField([]byte(data), "NONE"); got != "" {
		t.Errorf("a field that is not there: %q", got)
	}
}

func TestParseDepends(t *testing.T) {
	const output = `linux-image-7.2-cloud-amd64
  PreDepends: linux-base
 |Depends: dracut
    dracut
  Depends: linux-binary-7.2-cloud-amd64
  Depends: linux-modules-7.2-cloud-amd64
  Recommends: apparmor
`
	want := []string{"linux-binary-7.2-cloud-amd64", "linux-modules-7.2-cloud-amd64"}
	if diff := cmp.Diff(want, parseDepends(output)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

package testnode

import (
	"crypto/tls"
	"crypto/x509"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
)

func TestServerCertificate(t *testing.T) {
	authority, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.server("api", "127.0.0.1", "10.0.2.2", "localhost")
	if err != nil {
		t.Fatal(err)
	}
	certificate := parsePair(t, pair)
	roots := x509.NewCertPool()
	roots.AddCert(authority.certificate)
	for _, host := range []string{"127.0.0.1", "10.0.2.2", "localhost"} {
		if _, err := certificate.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if err := certificate.VerifyHostname("10.0.2.15"); err == nil {
		t.Error("valid for an address that it was not made for")
	}
}

func TestKubeconfig(t *testing.T) {
	authority, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	data, err := authority.kubeconfig("https://127.0.0.1:1", "system:node:n", "system:nodes")
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://127.0.0.1:1" {
		t.Errorf("server %s", config.Host)
	}
	certificate := parsePair(t, keyPair{config.CertData, config.KeyData})
	if certificate.Subject.CommonName != "system:node:n" {
		t.Errorf("user %s", certificate.Subject.CommonName)
	}
	if diff := cmp.Diff([]string{"system:nodes"}, certificate.Subject.Organization); diff != "" {
		t.Errorf("groups (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, certificate.ExtKeyUsage); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

func parsePair(t *testing.T, pair keyPair) *x509.Certificate {
	t.Helper()
	parsed, err := tls.X509KeyPair(pair.certificate, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Leaf
}

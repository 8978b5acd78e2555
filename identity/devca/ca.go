package devca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	caLife = 365 * 24 * time.Hour
	// backdate lets a peer whose clock is a little behind accept a fresh certificate.
	backdate = 30 * time.Second
)

// ca is a self-signed authority for one trust domain. It is immutable.
type ca struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// openCA makes an authority, or reads it from file when one is named and exists.
func openCA(file string, td spiffeid.TrustDomain) (*ca, error) {
	if file == "" {
		return newCA(td)
	}
	data, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c, err := newCA(td)
		if err != nil {
			return nil, err
		}
		return c, c.save(file)
	case err != nil:
		return nil, fmt.Errorf("devca: cannot read the authority's key: %w", err)
	}
	return parseCA(data, td, file)
}

func newCA(td spiffeid.TrustDomain) (*ca, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("devca: %w", err)
	}
	now := time.Now()
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"SPIKE HA development authority"}, CommonName: td.Name()},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("devca: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("devca: %w", err)
	}
	return &ca{key: key, cert: cert}, nil
}

// issue makes an SVID for id that begins now, a little backdated, and lives for ttl, but never longer than
// the authority itself.
func (c *ca) issue(id spiffeid.ID, now time.Time, ttl time.Duration) (*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("devca: %w", err)
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	end := now.Add(ttl)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	begin := now
	if end.Before(begin) {
		begin = end // one that is born expired
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"SPIKE HA development authority"}},
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             begin.Add(-backdate),
		NotAfter:              end,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, fmt.Errorf("devca: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("devca: %w", err)
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}, nil
}

// save writes the key and certificate so that either the whole file is there or none.
func (c *ca) save(file string) error {
	key, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return fmt.Errorf("devca: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})...)
	tmp, err := os.CreateTemp(filepath.Dir(file), ".devca-*") // CreateTemp makes it 0600
	if err != nil {
		return fmt.Errorf("devca: cannot keep the authority's key: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("devca: cannot keep the authority's key: %w", err)
	}
	return nil
}

func parseCA(data []byte, td spiffeid.TrustDomain, file string) (*ca, error) {
	bad := func(what string) (*ca, error) {
		return nil, fmt.Errorf("devca: %s %s; delete it to start a new authority", file, what)
	}
	keyBlock, rest := pem.Decode(data)
	certBlock, _ := pem.Decode(rest)
	if keyBlock == nil || certBlock == nil {
		return bad("does not hold a key and a certificate")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return bad("holds no usable private key")
	}
	cert, err := x509.ParseCertificate(certBlock.Bytes)
	if err != nil || !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return bad("holds no certificate that fits its key")
	}
	if id, err := x509svid.IDFromCert(cert); err != nil || id.TrustDomain() != td {
		return bad("belongs to another trust domain than " + td.Name())
	}
	if time.Now().After(cert.NotAfter) {
		return bad("has expired")
	}
	return &ca{key: key, cert: cert}, nil
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("devca: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

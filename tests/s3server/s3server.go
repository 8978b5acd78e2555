// Package s3server runs a real S3 server for tests: versitygw, built from the module in tools/s3, over a directory, on loopback, with
// TLS under an authority of its own. Nothing of it outlives the test.
package s3server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Server is a running server. Root's credentials are Access and Secret.
type Server struct {
	Address        string // host:port
	CA             string // file of the authority
	Access, Secret string
	Data           string // its directory: a bucket is a directory in it
}

// built is where the server's program lies, built once for all tests of a package.
var built = sync.OnceValues(func() (string, error) {
	_, here, _, _ := runtime.Caller(0)
	dir, err := os.MkdirTemp("", "s3server")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "tool")
	cmd.Dir = filepath.Join(filepath.Dir(here), "..", "..", "tools", "s3")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the S3 server: %w\n%s", err, out)
	}
	return filepath.Join(dir, "versitygw"), nil
})

// Run runs the tests of m and then removes what was built for them: call it from TestMain.
func Run(m *testing.M) int {
	defer func() {
		if program, err := built(); err == nil {
			os.RemoveAll(filepath.Dir(program))
		}
	}()
	return m.Run()
}

// Start starts a server, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	program, err := built()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &Server{CA: filepath.Join(dir, "ca.pem"), Access: "root", Secret: "the secret of root in tests", Data: filepath.Join(dir, "data")}
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.Mkdir(s.Data, 0o700), os.Mkdir(filepath.Join(dir, "versions"), 0o700), os.Mkdir(filepath.Join(dir, "iam"), 0o700), certify(s.CA, cert, key)); err != nil {
		t.Fatal(err)
	}
	for range 5 { // a port may be taken between looking and listening
		if err = s.start(t, program, dir, cert, key); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

func (s *Server) start(t testing.TB, program, dir, cert, key string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Address = l.Addr().String()
	l.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(program, "--port", s.Address, "--cert", cert, "--key", key, "--quiet", "--iam-dir", filepath.Join(dir, "iam"),
		"posix", "--versioning-dir", filepath.Join(dir, "versions"), s.Data)
	cmd.Env = append(os.Environ(), "ROOT_ACCESS_KEY_ID="+s.Access, "ROOT_SECRET_ACCESS_KEY="+s.Secret)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	authority, err := os.ReadFile(s.CA)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.Address+"/", nil)
		if response, err := client.Do(r); err == nil {
			response.Body.Close()
			t.Cleanup(func() {
				cmd.Process.Kill()
				<-ended
			})
			return nil
		}
		select {
		case err := <-ended:
			said, _ := os.ReadFile(log.Name())
			return fmt.Errorf("the S3 server ended: %v\n%s", err, said)
		case <-ctx.Done():
			cmd.Process.Kill()
			return fmt.Errorf("the S3 server does not answer: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Bucket makes a bucket and returns its address.
func (s *Server) Bucket(t testing.TB, name string) string {
	t.Helper()
	if err := os.Mkdir(filepath.Join(s.Data, name), 0o700); err != nil {
		t.Fatal(err)
	}
	return s.URL(name)
}

// URL is the address of a bucket.
func (s *Server) URL(bucket string) string {
	options := url.Values{"endpoint": {"https://" + s.Address}, "path-style": {"true"}, "ca": {s.CA}}
	return "s3://" + bucket + "?" + options.Encode()
}

// certify makes an authority and a certificate for loopback.
func certify(ca, cert, key string) error {
	authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tests"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour * 24),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, authority.Public(), authority)
	if err != nil {
		return err
	}
	server, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "s3"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, server.Public(), authority)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(server)
	if err != nil {
		return err
	}
	write := func(name, kind string, der []byte) error {
		return os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	return errors.Join(write(ca, "CERTIFICATE", rootDER), write(cert, "CERTIFICATE", leafDER), write(key, "PRIVATE KEY", keyDER))
}

// Package s3server runs a real S3 server for tests: versitygw, built from the module in tools/s3 (minio, from tools/minio, with the
// build tag minio), over a directory, on loopback, with TLS under an authority of its own; and a Proxy in front of it that does what
// stores do on bad days. Run and Front are for programs, which close what they get; Start and Server.Proxy are for tests, which nothing
// of it outlives.
package s3server

import (
	"bytes"
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
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/spike-ha/spike-ha/internal/process"
)

// Server is a running server as one of its users sees it: Start gives root's view, User another's.
type Server struct {
	Address        string // host:port
	CA             string // file of the authority
	Access, Secret string
	Credentials    string // file with both, as the SDK reads it
	Data           string // its directory

	stop func() // of the one that Run returned, and its copies
}

// built is where the server's program lies, in the cache of Go's builds.
var built = sync.OnceValues(func() (string, error) {
	_, here, _, _ := runtime.Caller(0)
	cmd := exec.Command("go", "tool", "-n", program)
	cmd.Dir = filepath.Join(filepath.Dir(here), "..", "..", "tools", module)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("building the S3 server: %w\n%s", err, &said)
	}
	return strings.TrimSpace(string(out)), nil
})

// Build builds the server's program, which takes minutes the first time; Run does it, too.
func Build() error {
	_, err := built()
	return err
}

// Start starts a server, which ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s, err := Run(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// Run starts a server on loopback over an empty directory. Its certificate is good for other addresses, too: those of proxies.
func Run(dir string, hosts ...net.IP) (*Server, error) {
	path, err := built()
	if err != nil {
		return nil, err
	}
	s := &Server{CA: filepath.Join(dir, "ca.pem"), Access: "root", Secret: "secret-of-root-in-tests", Data: filepath.Join(dir, "data")}
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := errors.Join(os.Mkdir(s.Data, 0o700), os.Mkdir(filepath.Join(dir, "versions"), 0o700), os.Mkdir(filepath.Join(dir, "iam"), 0o700), certify(s.CA, cert, key, hosts...), s.keep("root")); err != nil {
		return nil, err
	}
	for range 5 { // a port may be taken between looking and listening
		if err = s.start(path, dir, cert, key); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// Close ends the server.
func (s *Server) Close() { s.stop() }

func (s *Server) start(path, dir, cert, key string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.Address = l.Addr().String()
	l.Close()
	cmd, err := s.command(path, dir, cert, key)
	if err != nil {
		return err
	}
	transport, err := s.transport()
	if err != nil {
		return err
	}
	spawner := process.NewSpawner() // a server ends with this process, however that ends
	child := &process.Child{Name: program, Binary: cmd.Path, Args: cmd.Args[1:], Env: cmd.Env, LogFile: filepath.Join(dir, "log"), Spawner: spawner}
	s.stop = func() {
		_ = child.Kill() // it may have ended
		spawner.Close()
	}
	if err := child.Start(); err != nil {
		spawner.Close()
		return err
	}
	client := &http.Client{Transport: transport}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.Address+"/", nil)
		response, err := client.Do(r)
		if err == nil {
			return response.Body.Close()
		}
		if child.Info().State == process.Died {
			err = fmt.Errorf("the S3 server ended: %s: %s", child.Info().Detail, child.LastWords())
		} else if ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		s.stop()
		return err
	}
}

// transport trusts the server's authority and nobody else.
func (s *Server) transport() (*http.Transport, error) {
	authority, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true}, nil
}

// Client is the SDK's client, for what snapshot.Bucket does not do: policies, versions, locks.
func (s *Server) Client(t testing.TB) *s3.Client {
	t.Helper()
	transport, err := s.transport()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return s.over(transport)
}

func (s *Server) over(transport *http.Transport) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String("https://" + s.Address), Region: "us-east-1", UsePathStyle: true, HTTPClient: &http.Client{Transport: transport},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: s.Access, SecretAccessKey: s.Secret}, nil
		}),
	})
}

// Bucket makes a bucket and returns its address.
func (s *Server) Bucket(t testing.TB, name string) string {
	t.Helper()
	return s.bucket(t, &s3.CreateBucketInput{Bucket: &name})
}

// MakeBucket makes a bucket and returns its address.
func (s *Server) MakeBucket(ctx context.Context, name string) (string, error) {
	transport, err := s.transport()
	if err != nil {
		return "", err
	}
	defer transport.CloseIdleConnections()
	_, err = s.over(transport).CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name})
	return s.URL(name), err
}

// LockedBucket makes a bucket in which objects stay for so many days, whatever their owner wants.
func (s *Server) LockedBucket(t testing.TB, name string, days int32) string {
	t.Helper()
	address := s.bucket(t, &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: aws.Bool(true)})
	_, err := s.Client(t).PutObjectLockConfiguration(t.Context(), &s3.PutObjectLockConfigurationInput{Bucket: &name, ObjectLockConfiguration: &types.ObjectLockConfiguration{
		ObjectLockEnabled: types.ObjectLockEnabledEnabled, Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeCompliance, Days: &days}}}})
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func (s *Server) bucket(t testing.TB, in *s3.CreateBucketInput) string {
	t.Helper()
	if _, err := s.Client(t).CreateBucket(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	return s.URL(*in.Bucket)
}

// URL is the address of a bucket, credentials included: nothing is left to the environment, so that tests run side by side.
func (s *Server) URL(bucket string) string {
	options := url.Values{"endpoint": {"https://" + s.Address}, "path-style": {"true"}, "ca": {s.CA}, "credentials": {s.Credentials}}
	return "s3://" + bucket + "?" + options.Encode()
}

// As is the server to somebody with other credentials, who need not be anybody.
func (s *Server) As(t testing.TB, access, secret string) *Server {
	t.Helper()
	as := *s
	as.Access, as.Secret = access, secret
	if err := as.keep(access); err != nil {
		t.Fatal(err)
	}
	return &as
}

// keep writes the credentials to their file.
func (s *Server) keep(name string) error {
	f, err := os.CreateTemp(filepath.Dir(s.CA), "credentials-"+name+"-")
	if err != nil {
		return err
	}
	s.Credentials = f.Name()
	_, err = fmt.Fprintf(f, "[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", s.Access, s.Secret)
	return errors.Join(err, f.Close())
}

// certify makes an authority and a certificate for loopback and for hosts.
func certify(ca, cert, key string, hosts ...net.IP) error {
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
		IPAddresses: append([]net.IP{net.IPv4(127, 0, 0, 1)}, hosts...), DNSNames: []string{"localhost"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
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

// Amazon's SDK for JavaScript on the object store: one call a line on standard input, its answer a line, as JSON.
//
// The environment is novarc's, NODE_PATH says where the packages are.  The client has its default settings; paths name
// the bucket because the endpoint is an IP address.

"use strict";

const fs = require("fs");
const { pipeline } = require("stream/promises");
const readline = require("readline");
const s3 = require("@aws-sdk/client-s3");
const { Upload } = require("@aws-sdk/lib-storage");
const { getSignedUrl } = require("@aws-sdk/s3-request-presigner");

const client = new s3.S3Client({ region: process.env.AWS_DEFAULT_REGION, forcePathStyle: true });

async function all(paginate, input) {
  const pages = [];
  for await (const page of paginate({ client }, input)) {
    pages.push(page);
  }
  return pages;
}

const names = (pages) => pages.flatMap((page) => (page.Contents ?? []).map((object) => object.Key));

const calls = {
  async make_bucket(Bucket) {
    await client.send(new s3.CreateBucketCommand({ Bucket }));
  },
  async remove_bucket(Bucket) {
    await client.send(new s3.DeleteBucketCommand({ Bucket }));
  },
  async buckets() {
    return (await client.send(new s3.ListBucketsCommand({}))).Buckets.map((bucket) => bucket.Name);
  },
  async put(Bucket, Key, path, ContentType, Metadata) {
    // a stream: its checksum is a trailer behind a body that goes out in chunks
    const Body = fs.createReadStream(path);
    await client.send(new s3.PutObjectCommand({ Bucket, Key, Body, Metadata, ContentType: ContentType || undefined }));
  },
  async put_in_parts(Bucket, Key, path) {
    await new Upload({ client, params: { Bucket, Key, Body: fs.createReadStream(path) } }).done();
  },
  async get(Bucket, Key, path) {
    const answer = await client.send(new s3.GetObjectCommand({ Bucket, Key }));
    await pipeline(answer.Body, fs.createWriteStream(path));
  },
  async get_range(Bucket, Key, first, last) {
    const answer = await client.send(new s3.GetObjectCommand({ Bucket, Key, Range: `bytes=${first}-${last}` }));
    return answer.Body.transformToString("hex");
  },
  async head(Bucket, Key) {
    const found = await client.send(new s3.HeadObjectCommand({ Bucket, Key }));
    return [found.ContentLength, JSON.parse(found.ETag), found.ContentType, found.Metadata];
  },
  async keys(Bucket, Prefix) {
    return names(await all(s3.paginateListObjectsV2, { Bucket, Prefix }));
  },
  async level(Bucket, Prefix) {
    const pages = await all(s3.paginateListObjectsV2, { Bucket, Prefix, Delimiter: "/" });
    return [names(pages), pages.flatMap((page) => (page.CommonPrefixes ?? []).map((found) => found.Prefix))];
  },
  async copy(Bucket, key, Key) {
    const CopySource = `${Bucket}/${encodeURIComponent(key)}`;
    await client.send(new s3.CopyObjectCommand({ Bucket, Key, CopySource }));
  },
  async delete(Bucket, Key) {
    await client.send(new s3.DeleteObjectCommand({ Bucket, Key }));
  },
  async delete_many(Bucket, given) {
    const Objects = given.map((Key) => ({ Key }));
    const answer = await client.send(new s3.DeleteObjectsCommand({ Bucket, Delete: { Objects } }));
    const deleted = (answer.Deleted ?? []).map((object) => object.Key);
    if (answer.Errors || JSON.stringify(deleted.sort()) !== JSON.stringify([...given].sort())) {
      throw new Error(`deleted ${deleted}, not ${JSON.stringify(answer.Errors)}`);
    }
  },
  async presign(method, Bucket, Key) {
    const Command = method === "PUT" ? s3.PutObjectCommand : s3.GetObjectCommand;
    return getSignedUrl(client, new Command({ Bucket, Key }), { expiresIn: 600 });
  },
};

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, ...given] = JSON.parse(line);
    let answer;
    try {
      answer = { result: (await calls[name](...given)) ?? null };
    } catch (error) {
      answer = { error: `${error.name}: ${error.message}` };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
}

main();
